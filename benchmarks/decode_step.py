"""`python -m benchmarks.decode_step --out FILE`: one decode step of a whole model, in milliseconds and joules a token.

A Qwen3-30B-A3B-shaped Transformers model with random weights, 16 sequences: `generate()` as it comes, and the decode
loop with the library's grouped matrix product, with Thermoe's kernels on bf16 experts, and on quantised ones, each
with the model's own routing and with a union policy. Quantised experts have random codes: time and energy do not
depend on them. Tokens are sampled, so that the sequences stay different.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import arms as make
from benchmarks import card
from benchmarks.kernels.results import dtype_on, environment
from benchmarks.options import check_counts, check_file, in_one_line
from benchmarks.random_experts import random_quantised
from benchmarks.windows import ReadState, Sample, Sampler, interleaved, sensor_figures, summarise_arm, windows_line
from thermoe.errors import ConfigError
from thermoe.integrations.decoding import Decoder
from thermoe.integrations.experts import register_experts
from thermoe.integrations.experts_quantised import precision_of
from thermoe.integrations.hooks import RouterHooks

BATCH_SIZE = 16
WARM_STEPS = 6  # the first one runs as it is, the second is captured
GENERATE = "generate"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepArm:
    """What is compared.

    Attributes:
        name: As it is called in the results.
        experts: Experts implementation of Transformers; None leaves the model's.
        held_as: Format of a quantised copy, if any.
        steered: Whether a union policy is in force.
    """

    name: str
    experts: str | None
    held_as: str | None = None
    steered: bool = False

    def dtype(self, device: torch.device) -> str:
        """Format of the experts' weights."""
        return dtype_on(device, self.held_as or "bf16")


def all_arms(formats: Sequence[str]) -> list[StepArm]:
    """Every arm, the library's own first."""
    arms = [StepArm(name=GENERATE, experts=None), StepArm(name="graph_grouped_mm", experts="grouped_mm")]
    for held_as in (None, *formats):
        for steered in (False, True):
            name = f"thermoe_{held_as or 'bf16'}{'_union' if steered else ''}"
            arms.append(StepArm(name=name, experts=register_experts(), held_as=held_as, steered=steered))
    return arms


class Bench:
    """The model, and what is measured on it.

    Args:
        options: Of the command line.
        device: Where it runs.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.model = build_model(options.layers, smoke=options.smoke, device=device)
        hooks = RouterHooks(self.model)
        self.shape = hooks.shape
        hooks.remove()

    def window(self, arm: StepArm, place: tuple[int, int], read: ReadState | None) -> Sample:
        """One window of one arm: `place` is (trial, position)."""
        with ExitStack() as undo:
            own = self.model.config._experts_implementation
            if arm.experts is not None:
                self.model.set_experts_implementation(arm.experts)
                undo.callback(self.model.set_experts_implementation, own)
            if arm.held_as is not None:
                undo.enter_context(random_quantised(self.model, arm.held_as))
            hooks = None
            if arm.steered:
                hooks = RouterHooks(self.model)
                undo.callback(hooks.remove)
                hooks.set_knobs(make.union_of_first(self.shape, min(self.options.k0, self.shape.top_k - 1)))
            clock = StepClock(self.device, read, hooks)
            steps = self.options.generate_steps if arm.name == GENERATE else self.options.steps
            ids = self._prompts(self.options.context - steps // 2)
            if arm.name == GENERATE:
                self._generate(ids, steps, clock)
            else:
                decoder = Decoder(self.model, hooks=hooks)
                decoder.decode(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=steps,
                    do_sample=True,
                    top_k=0,
                    stop_token_ids=[],
                    between_steps=clock,
                )
            counted, took_s = clock.stop()
            seen = None if hooks is None else hooks.counters.drain()
        return Sample(
            arm=arm.name,
            trial=place[0],
            position=place[1],
            steps=counted,
            window_s=took_s,
            ms_per_step=1e3 * took_s / counted,
            tokens_per_s=counted * BATCH_SIZE / took_s,
            distinct_experts=None if seen is None else float(seen.distinct_experts.mean()),
            gate_mass_kept=None if seen is None else float(seen.gate_mass_kept.mean()),
            **sensor_figures(clock.sampler.states, took_s / counted / BATCH_SIZE),
        )

    def _prompts(self, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.config.vocab_size
        return torch.randint(0, vocabulary, (BATCH_SIZE, max(length, 1)), generator=generator).to(self.device)

    def _generate(self, ids: Tensor, steps: int, clock: "StepClock") -> None:
        def each_step(tokens: Tensor, scores: Any, **more: Any) -> Tensor:
            clock(tokens.shape[1] - ids.shape[1])
            return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)

        with torch.no_grad():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=steps,
                do_sample=True,
                top_k=0,
                eos_token_id=None,
                stopping_criteria=[each_step],
            )


class StepClock:
    """Times the steps after the first few, and reads the sensors beside them."""

    def __init__(self, device: torch.device, read: ReadState | None, hooks: RouterHooks | None) -> None:
        self.sampler = Sampler(read)
        self._on_gpu, self._hooks = device.type == "cuda", hooks
        self._first = self._last = 0
        self._began_s = 0.0

    def __call__(self, num_new: int) -> None:
        """`num_new` tokens are there, or on their way."""
        self._last = num_new
        if self._first:
            self.sampler()
        elif num_new >= WARM_STEPS:
            self._wait()
            if self._hooks is not None:
                self._hooks.counters.drain()
            self._first, self._began_s = num_new, time.perf_counter()

    def stop(self) -> tuple[int, float]:
        """Steps since the clock began, and their seconds."""
        self._wait()
        return self._last + 1 - self._first, time.perf_counter() - self._began_s

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def build_model(num_layers: int, *, smoke: bool, device: torch.device) -> Any:
    """The model with random weights: bf16 on a GPU, float32 on a CPU."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"vocab_size": 151936, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}
    sizes |= {"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
    if smoke:
        sizes = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"head_dim": 16, "moe_intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4}
    config = Qwen3MoeConfig(
        **sizes,
        intermediate_size=sizes["moe_intermediate_size"],
        num_hidden_layers=num_layers,
        norm_topk_prob=True,
        max_position_embeddings=4096,
        eos_token_id=None,
        pad_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = Qwen3MoeForCausalLM._from_config(config, dtype=dtype)
    return model.eval()


def rows(bench: Bench, arms: Sequence[StepArm], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The lines of the results; changes are relative to the first arm in the same trial."""
    references = {s.trial: s for s in samples if s.arm == arms[0].name}
    shape, lines = bench.shape, []
    for arm in arms:
        own = [s for s in samples if s.arm == arm.name and s.trial in references]
        if not own:
            continue
        summary = summarise_arm(own, references)
        lines.append(
            {
                "op": "decode_step",
                "impl": "thermoe" if arm.name.startswith("thermoe") else "transformers",
                "arm": arm.name,
                "shape": {"D": shape.hidden_size, "I": shape.inter_size, "E": shape.num_experts, "k": shape.top_k},
                "layers": shape.num_layers,
                "dtype": arm.dtype(bench.device),
                "tokens": BATCH_SIZE,
                "context": bench.options.context,
                "union_k0": bench.options.k0 if arm.steered else None,
                "plan_included": True,
                "latency_us_sustained": 1e3 * summary["ms_per_step"]["median"],
                "kind": "measured",
                **summary,
            }
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 2 if an option is wrong."""
    return in_one_line(_run, argv, "benchmarks.decode_step")


def _run(argv: Sequence[str] | None) -> int:
    options = _options(argv)
    check_file(options.out)
    check_counts(options, "layers", "context", "trials")
    arms = _chosen(options)
    device = card.find_device("cpu" if options.smoke else options.device)
    sensors = card.open_sensors(device)
    read = sensors.read if sensors else None
    started_s = time.monotonic()
    bench = Bench(options, device)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "revision")}
    env = environment(device, read, settings, {"before": card.calibrate(device)}, options.revision)
    samples: list[Sample] = []
    by_name = {arm.name: arm for arm in arms}
    for position, (trial, name) in enumerate(interleaved(list(by_name), options.trials)):
        samples.append(bench.window(by_name[name], (trial, position), read))
        print(windows_line(samples[-1]), flush=True)
        env["seconds"] = round(time.monotonic() - started_s, 1)
        content = {"schema": card.SCHEMA_VERSION, "env": env, "rows": rows(bench, arms, samples)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _chosen(options: argparse.Namespace) -> list[StepArm]:
    known = all_arms([name for name in options.formats.split(",") if name and precision_of(name)])  # or refused
    wanted = [name for name in options.arms.split(",") if name]
    unknown = sorted(set(wanted) - {arm.name for arm in known})
    if unknown:
        raise ConfigError(f"unknown arms {', '.join(unknown)}: choose from {', '.join(a.name for a in known)}")
    return [arm for arm in known if not wanted or arm.name in wanted]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_step", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--context", type=int, default=512, help="mean positions in the cache over a window")
    parser.add_argument("--steps", type=int, default=600, help="steps of a window; sensors need 2 seconds of them")
    parser.add_argument("--generate-steps", type=int, default=40, help="steps of a window of generate()")
    parser.add_argument(
        "--k0", type=float, default=4.0, help="first choices of each token that the union loads, on average over layers"
    )
    parser.add_argument("--formats", default="int4,bank4", help="comma list of formats of quantised experts")
    parser.add_argument("--arms", default="", help="comma list; all where left out")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--revision", help="git revision to write down where there is no checkout")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and short windows, on any machine")
    options = parser.parse_args(argv)
    if options.smoke:
        small = {"layers": 2, "context": 24, "steps": 16, "generate_steps": 12}
        options = argparse.Namespace(**(vars(options) | small))
    if min(options.steps, options.generate_steps) <= WARM_STEPS:
        parser.error(f"--steps and --generate-steps need more than {WARM_STEPS}")
    return options


if __name__ == "__main__":
    sys.exit(main())
