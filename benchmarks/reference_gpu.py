"""`python -m benchmarks.reference_gpu --model DIR --text FILE --out DIR`: a Transformers model, as it comes.

Teacher-forced decode of 16 sequences in eager mode under each strategy, with the hooks of
`thermoe.integrations`. Such decode waits for launches of small kernels rather than for weights, so
that fewer experts save little; the figures say how little.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import arms as make
from benchmarks import card, reference_checks
from benchmarks.arms import Arm
from benchmarks.decoder import BATCH_SIZE, Decoder, load, perplexity, text_blocks
from benchmarks.windows import (
    ReadState,
    Sample,
    change_pct,
    interleaved,
    measure_window,
    sensor_figures,
    summarise_arm,
    windows_line,
)
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks
from thermoe.profiling.loop import make_loop
from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.telemetry.opening import COUNTER_EVERY_S
from thermoe.types import MoEShape, RoutingKnobs

BARE = "bare"
MATCHED_K0 = (4, 3)
NOTE = (
    "eager Transformers decode is bound by launches: energy per token follows the time of the host. `bare` is the "
    "model without hooks, `baseline` the attached model whose routing is only watched. Perplexity by whole blocks, "
    "each position one batch. kernel_aware has all costs alike and the price, found by bisection, at which it touches "
    "as many distinct experts as the opportunistic arm it names."
)


class Bench:
    """The model, its text, and what is measured on them."""

    def __init__(self, model: nn.Module, blocks: Tensor) -> None:
        self.model, self.blocks = model, blocks
        hooks = self.attach()
        self.shape: MoEShape = hooks.shape
        hooks.remove()

    def attach(self, scope: UnionScope = UnionScope.POSITIONS) -> RouterHooks:
        """Hooks that change nothing yet."""
        return RouterHooks(self.model, scope=scope)

    def judge(self, knobs: RoutingKnobs | None, num_blocks: int | None = None) -> tuple[float, float]:
        """Perplexity and mean distinct experts of a batch, over the first blocks."""
        hooks = self.attach()
        hooks.set_knobs(knobs)
        value = perplexity(self.model, self.blocks[:num_blocks])
        distinct = float(hooks.counters.drain().distinct_experts.mean())
        hooks.remove()
        return value, distinct

    def window(self, arm: Arm, place: tuple[int, int], seconds: float, read: ReadState | None) -> Sample:
        """One energy window; `place` is (trial, position)."""
        hooks = None if arm.name == BARE else self.attach()
        if hooks is not None:
            hooks.set_knobs(arm.knobs)
        decoder = Decoder(self.model, self.blocks)

        def before() -> None:
            decoder.restart()
            if hooks is not None:
                hooks.counters.drain()

        loop = make_loop(decoder.step, self.blocks.device)
        steps, took_s, states = measure_window(loop, seconds, read, before=before)
        seen = hooks.counters.drain() if hooks else None
        if hooks is not None:
            hooks.remove()
        return Sample(
            arm=arm.name,
            trial=place[0],
            position=place[1],
            steps=steps,
            window_s=took_s,
            ms_per_step=1e3 * took_s / steps,
            tokens_per_s=steps * BATCH_SIZE / took_s,
            distinct_experts=float(seen.distinct_experts.mean()) if seen else None,
            gate_mass_kept=float(seen.gate_mass_kept.mean()) if seen else None,
            **sensor_figures(states, took_s / steps / BATCH_SIZE),
        )


def prepare_arms(bench: Bench) -> list[Arm]:
    """Bare, baseline and every strategy."""
    shape = bench.shape
    k0s = tuple(k0 for k0 in MATCHED_K0 if k0 < shape.top_k)
    priced = make.kernel_aware_arms(shape, k0s, lambda knobs: bench.judge(knobs, 1)[1], halvings=12)
    return [Arm(name=BARE, knobs=None), Arm(name="baseline", knobs=None), *make.fixed_arms(shape, k0s), *priced]


def rows(bench: Bench, arms: Sequence[Arm], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The lines of `results.json`; changes are relative to the bare model in the same trial."""
    references = {s.trial: s for s in samples if s.arm == BARE}
    own_perplexity, _ = bench.judge(None)
    shape = bench.shape
    lines = []
    for arm in arms:
        value, distinct = bench.judge(arm.knobs)
        summary = summarise_arm([s for s in samples if s.arm == arm.name], references)
        lines.append(
            {
                "op": "decode_step",
                "impl": "transformers" if arm.name == BARE else "thermoe",
                "arm": arm.name,
                "arm_settings": arm.settings,
                "shape": {"D": shape.hidden_size, "I": shape.inter_size, "E": shape.num_experts, "k": shape.top_k},
                "layers": shape.num_layers,
                "dtype": str(next(bench.model.parameters()).dtype).removeprefix("torch."),
                "tokens": BATCH_SIZE,
                "plan_included": True,
                "perplexity": value,
                "perplexity_change_pct": change_pct(value, own_perplexity),
                "perplexity_tokens": bench.blocks.numel() - bench.blocks.shape[0] * BATCH_SIZE,
                "distinct_experts_in_blocks": distinct,
                "latency_us_sustained": 1e3 * summary["ms_per_step"]["median"],
                "kind": "measured",
                **summary,
            }
        )
    return lines


def run_checks(bench: Bench, device: torch.device, seconds: float) -> dict[str, Any]:
    """All checks; the energy windows come afterwards."""
    knobs = make.union_of_first(bench.shape, min(MATCHED_K0[0], bench.shape.top_k - 1))
    sensors = card.open_sensors(device, COUNTER_EVERY_S)  # as `thermoe` opens them, to watch
    monitor = GpuSystemMonitor(sensors, interval_s=1.0 / reference_checks.MONITOR_HZ) if sensors else None
    with torch.inference_mode():
        checks = {"bits": reference_checks.same_bits(bench.model, bench.blocks, bench.attach)}
        checks["host_waits"] = reference_checks.host_waits(bench.model, bench.blocks, bench.attach, knobs, monitor)
    if sensors:
        checks["monitor"] = reference_checks.monitor_share(
            GpuSystemMonitor(sensors, interval_s=1.0 / reference_checks.MONITOR_HZ), seconds
        )
    return checks


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 1 if attaching changed a bit or made the host wait."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a Hugging Face model")
    parser.add_argument("--text", type=Path, help="text to decode")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and samples.csv")
    parser.add_argument("--positions", type=int, default=256, help="length of a block")
    parser.add_argument("--blocks", type=int, default=8, help="blocks of 16 sequences")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of an energy window")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-static", action="store_true", help="leave out generate() with a static cache")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, no energy, on any machine")
    options = parser.parse_args(argv)
    if not options.smoke and (options.model is None or options.text is None):
        parser.error("--model and --text are needed, or --smoke")
    if options.smoke:
        options = argparse.Namespace(**(vars(options) | {"model": None, "text": None, "positions": 24, "blocks": 2}))
    device = card.find_device("cpu" if options.smoke else options.device)
    started_s = time.monotonic()
    sensors = card.open_sensors(device)
    read = sensors.read if sensors else None
    model = load(options.model, device)
    bench = Bench(model, text_blocks(options.model, options.text, options.positions, options.blocks, device))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    for name in ("model", "text"):
        settings[name] = settings[name] and Path(settings[name]).name
    env = card.describe(device, read, settings) | {"note": NOTE, "calibration": {"before": card.calibrate(device)}}
    checks = run_checks(bench, device, 10.0)
    arms = prepare_arms(bench)
    samples: list[Sample] = []
    by_name = {arm.name: arm for arm in arms}
    for position, (trial, name) in enumerate(interleaved(list(by_name), options.trials)):
        samples.append(bench.window(by_name[name], (trial, position), options.seconds, read))
        print(windows_line(samples[-1]), flush=True)
    env["calibration"]["after"] = card.calibrate(device)
    lines = rows(bench, arms, samples)
    card.write_results(options.out, env, lines, samples, checks=checks)
    steered = make.union_of_first(bench.shape, min(MATCHED_K0[0], bench.shape.top_k - 1))
    checks["generate"] = reference_checks.generate_modes(
        bench.model, bench.blocks, lambda: bench.attach(UnionScope.DECODE), steered, static=not options.no_static
    )
    env["seconds"] = round(time.monotonic() - started_s, 1)
    card.write_results(options.out, env, lines, samples, checks=checks)
    print(f"checks: {checks}")
    return 0 if checks["bits"]["attached_equals_bare"] and checks["host_waits"]["none_added"] else 1


if __name__ == "__main__":
    sys.exit(main())
