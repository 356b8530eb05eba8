"""`python -m benchmarks.moe_stack --out DIR`: joules per token of a stack of MoE layers under each strategy.

Sixteen tokens go through layers of Qwen3-30B-A3B's shape with random weights, captured once per
strategy in a CUDA graph that reads its knobs from device memory: by the project's own kernels, and on request by plain
torch operations beside them. Random weights cannot tell quality:
the kernel-aware arms are priced so that they touch as many experts as the opportunistic ones.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import arms as make
from benchmarks import card
from benchmarks.arms import Arm
from benchmarks.options import check_counts, check_folder, check_seconds, in_one_line
from benchmarks.stack import IMPLS, MoeStack
from benchmarks.windows import (
    ReadState,
    Sample,
    interleaved,
    measure_window,
    sensor_figures,
    summarise_arm,
    windows_line,
)
from thermoe.profiling.capture import capture_graph
from thermoe.profiling.draw import Draw
from thermoe.profiling.loop import Loop, make_loop
from thermoe.profiling.operations import relative_error
from thermoe.types import NAMED_SHAPES, MoEShape, RoutingKnobs

SMOKE_SHAPE = MoEShape(num_layers=2, hidden_size=32, inter_size=16, num_experts=32, top_k=8)
MATCHED_K0 = (4, 3)
CHECKED_K0 = (1, 2, 4, 6)
TIMED_STEPS = 100
MAX_REL_ERROR = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
Row = dict[str, Any]
NOTE = (
    "random weights: quality cannot be judged here. The kernel_aware arms have all costs alike and the price, found by "
    "bisection, at which they touch as many distinct experts as the opportunistic arm they name."
)


@dataclass(frozen=True, slots=True)
class Runnable:
    """One arm, ready to run.

    Attributes:
        arm: The arm.
        impl: What runs it; arms of all but the first implementation carry its name before their own.
        step: Copies the next batch into the stack's input and runs the stack.
        loop: Repeats `step`.
        steps_s: Collects the seconds of single steps over all windows [s].
    """

    arm: Arm
    impl: str
    step: Callable[[], None]
    loop: Loop
    steps_s: list[float]


class Bench:
    """The stack, its batches and everything that is measured on it."""

    def __init__(self, shape: MoEShape, num_tokens: int, num_batches: int, device: torch.device) -> None:
        self.shape, self.num_tokens, self.device = shape, num_tokens, device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.stack = MoeStack(shape, num_tokens, device, dtype)
        draw = Draw(device, dtype, seed=1)
        self.batches = [draw.normal(num_tokens, shape.hidden_size) for _ in range(num_batches)]

    def use(self, impl: str) -> None:
        """Prepare arms on this implementation from now on."""
        self.stack.impl = impl
        self.stack.warm_up()

    def prepare(self, arm: Arm, *, captured: bool) -> Runnable:
        """The arm in a graph of its own, or as plain calls."""
        impl = self.stack.impl
        self.select(arm)
        run = capture_graph(self.stack.step).replay if captured else self.stack.step
        batches = itertools.cycle(self.batches)

        def step() -> None:
            self.stack.impl = impl  # of plain calls; a graph has its own
            self.stack.x_TD.copy_(next(batches))
            run()

        return Runnable(arm, impl, step, make_loop(step, self.device), [])

    def select(self, arm: Arm) -> None:
        """Send the arm's knobs."""
        assert arm.knobs is not None
        self.stack.union = arm.union
        self.stack.knobs.write(arm.knobs)

    def mean_distinct(self, runnable: Runnable, knobs: RoutingKnobs) -> float:
        """Distinct experts, mean over layers and batches, under knobs sent to what may have been captured before."""
        self.select(replace(runnable.arm, knobs=knobs))
        self.stack.counters.drain()
        for _ in self.batches:
            runnable.step()
        return float(self.stack.counters.drain().distinct_experts.mean())

    def output(self, runnable: Runnable) -> torch.Tensor:
        """What the arm makes of the first batch."""
        self.select(runnable.arm)
        first = self.batches[0]
        for _ in self.batches:
            runnable.step()
            if torch.equal(self.stack.x_TD, first):
                break
        return self.stack.out_TD.clone()

    def window(self, runnable: Runnable, place: tuple[int, int], seconds: float, read: ReadState | None) -> Sample:
        """One energy window, then the latency of single steps; `place` is (trial, position)."""
        self.select(runnable.arm)
        drain = self.stack.counters.drain
        steps, took_s, states = measure_window(runnable.loop, seconds, read, before=drain)
        seen = drain()
        runnable.steps_s.extend(runnable.loop.each(TIMED_STEPS if self.device.type == "cuda" else 3))
        return Sample(
            arm=runnable.arm.name,
            trial=place[0],
            position=place[1],
            steps=steps,
            window_s=took_s,
            ms_per_step=1e3 * took_s / steps,
            tokens_per_s=steps * self.num_tokens / took_s,
            distinct_experts=float(seen.distinct_experts.mean()),
            gate_mass_kept=float(seen.gate_mass_kept.mean()),
            **sensor_figures(states, took_s / steps / self.num_tokens),
        )


def check(bench: Bench, baseline: Runnable, union: Runnable) -> dict[str, Any]:
    """Correctness; `passed` tells whether all of it holds."""
    stack = bench.stack
    bench.select(baseline.arm)
    stack.x_TD.copy_(bench.batches[0])
    wrong, worst = stack.own_routing_errors()
    rel_error = stack.rel_error()
    plain = {r.arm.name: bench.prepare(r.arm, captured=False) for r in (baseline, union)}
    differences = {
        r.arm.name: relative_error(bench.output(r), bench.output(plain[r.arm.name]).double()) for r in (baseline, union)
    }
    knobs = {k0: make.union_of_first(bench.shape, k0) for k0 in CHECKED_K0}
    counts = {k0: bench.mean_distinct(union, knobs[k0]) for k0 in CHECKED_K0}
    expected = {k0: bench.mean_distinct(plain[union.arm.name], knobs[k0]) for k0 in CHECKED_K0}
    limit = MAX_REL_ERROR[stack.dtype]
    return {
        "neutral_routing": {"tokens_unlike_softmax_top_k": wrong, "largest_weight_error": worst},
        "rel_error_against_float64": rel_error,
        "graph_against_plain_calls_rel_difference": differences,
        "new_knobs_at_next_replay": {"distinct_experts_by_k0": counts, "by_plain_calls": expected},
        "passed": bool(
            wrong == 0
            and worst < 1e-5
            and max(rel_error, *differences.values()) < limit
            and all(counts[a] < counts[b] for a, b in itertools.pairwise(CHECKED_K0))
            and all(abs(counts[k0] / expected[k0] - 1.0) < 1e-2 for k0 in CHECKED_K0)
        ),
    }


def prepare_arms(bench: Bench, impls: Sequence[str], *, captured: bool) -> tuple[list[Runnable], dict[str, Any]]:
    """All arms by implementation, each baseline first, and the checks made on the way."""
    runnables: list[Runnable] = []
    checks: dict[str, Any] = {}
    found: list[Arm] = []  # with the first implementation, for all
    for impl in impls:
        bench.use(impl)
        prefix = "" if impl == impls[0] else f"{impl}/"
        baseline, *fixed = (
            bench.prepare(replace(arm, name=prefix + arm.name), captured=captured) for arm in _given_arms(bench.shape)
        )
        checks[impl] = check(bench, baseline, fixed[0])
        found = found or _found_arms(bench, fixed[0])
        priced = [bench.prepare(replace(arm, name=prefix + arm.name), captured=captured) for arm in found]
        runnables += [baseline, *fixed, *priced]
    return runnables, checks | {"passed": all(found["passed"] for found in checks.values())}


def _given_arms(shape: MoEShape) -> list[Arm]:
    return [Arm(name="baseline", knobs=make.neutral(shape)), *make.fixed_arms(shape, MATCHED_K0)]


def _found_arms(bench: Bench, union: Runnable) -> list[Arm]:
    return make.kernel_aware_arms(bench.shape, MATCHED_K0, lambda knobs: bench.mean_distinct(union, knobs))


def row(bench: Bench, runnable: Runnable, samples: Sequence[Sample], env: dict[str, Any], rel_error: float) -> Row:
    """One line of `results.json`; changes are against the baseline of the same implementation."""
    shape, name = bench.shape, runnable.arm.name
    baseline = f"{runnable.impl}/baseline" if name.startswith(f"{runnable.impl}/") else "baseline"
    summary = summarise_arm([s for s in samples if s.arm == name], {s.trial: s for s in samples if s.arm == baseline})
    low, median, high = (1e6 * float(v) for v in np.percentile(runnable.steps_s, [5, 50, 95]))
    distinct = summary["distinct_experts"]["median"]
    calibration = env["calibration"]["before"]
    copy_tb_s = calibration["copy_tb_s"] if calibration else None
    weight_bytes = shape.num_layers * distinct * shape.expert_bytes(8.0 * bench.stack.x_TD.element_size())
    step_mj = {name: _per_step(summary[name], bench.num_tokens) for name in ("j_per_token", "j_per_token_integrated")}
    return {
        "op": "decode_step",
        "impl": runnable.impl,
        "arm": name,
        "arm_settings": runnable.arm.settings,
        "shape": {"D": shape.hidden_size, "I": shape.inter_size, "E": shape.num_experts, "k": shape.top_k},
        "layers": shape.num_layers,
        "dtype": str(bench.stack.dtype).removeprefix("torch."),
        "tokens": bench.num_tokens,
        "plan_included": True,
        "latency_us": {"median": round(median, 2), "low": round(low, 2), "high": round(high, 2)},
        "latency_us_sustained": 1e3 * summary["ms_per_step"]["median"],
        "energy_mj": step_mj["j_per_token"],
        "energy_mj_integrated": step_mj["j_per_token_integrated"],
        "floor_us": None if copy_tb_s is None else round(weight_bytes / copy_tb_s / 1e6, 2),
        "rel_error": rel_error,
        "kind": "measured",
        **summary,
    }


def _per_step(j_per_token: dict[str, float] | None, num_tokens: int) -> float | None:
    return None if j_per_token is None else 1e3 * num_tokens * j_per_token["median"]


def _impls(text: str) -> tuple[str, ...]:
    impls = tuple(text.split(","))
    if not set(impls) <= set(IMPLS) or len(set(impls)) < len(impls):
        raise argparse.ArgumentTypeError(f"{text}: choose from {', '.join(IMPLS)}, each once")
    return impls


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 1 if a check failed (the figures are written all the same), 2 if an option is wrong."""
    return in_one_line(_run, argv, "benchmarks.moe_stack")


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moe_stack", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and samples.csv")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batches", type=int, default=16, help="input batches that take turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of an energy window")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--impls", type=_impls, default=IMPLS[:1], help="thermoe, torch or both, comma between")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--smoke", action="store_true", help="a tiny stack without graph and energy, on any machine")
    options = parser.parse_args(argv)
    check_folder(options.out)
    check_counts(options, "layers", "tokens", "batches", "trials")
    check_seconds(options.seconds)
    device = card.find_device("cpu" if options.smoke else options.device)
    shape = SMOKE_SHAPE if options.smoke else replace(NAMED_SHAPES["qwen3-30b-a3b"], num_layers=options.layers)
    started_s = time.monotonic()
    sensors = card.open_sensors(device)
    read = sensors.read if sensors else None
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    with torch.inference_mode():
        env = card.describe(device, read, settings) | {"note": NOTE}
        env["calibration"] = {"before": card.calibrate(device)}
        bench = Bench(shape, options.tokens, options.batches, device)
        runnables, checks = prepare_arms(bench, options.impls, captured=device.type == "cuda")
        by_name = {r.arm.name: r for r in runnables}
        samples: list[Sample] = []
        for position, (trial, name) in enumerate(interleaved(list(by_name), options.trials)):
            samples.append(bench.window(by_name[name], (trial, position), options.seconds, read))
            print(windows_line(samples[-1]), flush=True)
        env["calibration"]["after"] = card.calibrate(device)
    env["seconds"] = round(time.monotonic() - started_s, 1)
    rows = [row(bench, r, samples, env, checks[r.impl]["rel_error_against_float64"]) for r in runnables]
    card.write_results(options.out, env, rows, samples, checks=checks)
    print(f"checks {'passed' if checks['passed'] else 'FAILED'}: {checks}")
    return 0 if checks["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
