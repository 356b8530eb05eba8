"""Teacher-forced decode of a Transformers model: one position at a time, the next token given by the text.

B sequences, S positions, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH_SIZE = 16
SMOKE_VOCABULARY = 64


class Decoder:
    """Feeds the text position by position, with a growing cache as `generate()` has by default.

    At the end of a block the cache is emptied and the next block begins; after the last one, the first.

    Args:
        model: The model.
        blocks: (N, B, S) token ids.
    """

    def __init__(self, model: nn.Module, blocks: Tensor) -> None:
        self._model, self._blocks = model, blocks
        self.restart()

    def restart(self) -> None:
        """Go back to the first position of the first block."""
        self._block, self._position, self._cache = 0, 0, None

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Logits (B, V) after one more position."""
        ids_BS = self._blocks[self._block]
        column = ids_BS[:, self._position : self._position + 1]
        output = self._model(input_ids=column, past_key_values=self._cache, use_cache=True)
        self._cache, self._position = output.past_key_values, self._position + 1
        if self._position == ids_BS.shape[1]:
            self._block, self._position, self._cache = (self._block + 1) % len(self._blocks), 0, None
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.inference_mode()
def perplexity(model: nn.Module, blocks: Tensor) -> float:
    """Perplexity over all predictions within the blocks, a block per forward."""
    losses = []
    for ids_BS in blocks:
        logits = model(input_ids=ids_BS, use_cache=False).logits[:, :-1].float()
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), ids_BS[:, 1:].flatten()).double())
    return float(torch.stack(losses).mean().exp())


def load(folder: str | None, device: torch.device) -> nn.Module:
    """The model in bf16 on a GPU, float32 on a CPU; a tiny random one without a folder."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from thermoe.integrations.experts import register_experts

    model: Any
    if folder is None:
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                vocab_size=SMOKE_VOCABULARY,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                moe_intermediate_size=16,
                intermediate_size=16,
                num_experts=32,
                num_experts_per_tok=8,
                max_position_embeddings=128,
            )
        )
    else:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.set_experts_implementation(register_experts())
    placed: nn.Module = model.eval().to(device)
    return placed


def text_blocks(folder: str | None, text: Path | None, positions: int, blocks: int, device: torch.device) -> Tensor:
    """(N, B, S) token ids from the beginning of a text; random ones without a text."""
    needed = blocks * BATCH_SIZE * positions
    if folder is None or text is None:
        ids = torch.randint(0, SMOKE_VOCABULARY, (needed,), generator=torch.Generator().manual_seed(0))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.model_max_length = 1 << 40  # a whole text is encoded at once
        ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8", errors="replace"))["input_ids"])
        if len(ids) < needed:
            raise SystemExit(f"{text} has {len(ids)} tokens, needed {needed}: give a longer text or fewer --blocks")
    # Row by row through the text, so that the rows of a batch are far apart.
    rows = ids[:needed].view(BATCH_SIZE, blocks, positions)
    return rows.transpose(0, 1).contiguous().to(device)
