# ruff: noqa: T201 - an example prints
"""Decode with a Mixture-of-Experts model in captured steps, with int4 experts, while its routing is steered.

    python examples/decode.py [MODEL]

MODEL is a folder or a Hub id of a supported family; without one, the demo model of the package is used. On a GPU
every step is one CUDA graph; on a CPU the same loop calls the model step by step.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import thermoe
from thermoe.demo import demo_model_path


def main() -> None:
    """Decode two prompts twice: as the model routes, and with a union of experts for the batch; figures are of each."""
    folder = sys.argv[1] if len(sys.argv) > 1 else str(demo_model_path())
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.eval().to("cuda" if on_gpu else "cpu")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = tokenizer(["In the beginning", "The people of the United States"], return_tensors="pt", padding=True)

    with thermoe.attach(model, strategy="baseline", experts="int4") as handle:
        for strategy, settings in (("baseline", {}), ("opportunistic", {"k0": 1})):
            handle.set_strategy(strategy, settings)
            tokens = handle.decode(**prompts, max_new_tokens=32)
            print(f"--- {strategy}: {handle.summary()['distinct_experts_mean']:.1f} distinct experts a step")
            for text in tokenizer.batch_decode(tokens, skip_special_tokens=True):
                print(text)


if __name__ == "__main__":
    main()
