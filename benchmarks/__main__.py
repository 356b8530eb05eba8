"""`python -m benchmarks --out FILE`: kernels against their floors, their targets and their rivals, in one run."""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.card import open_sensors
from benchmarks.kernels.calibration import calibrate, calibration_line, card_of
from benchmarks.kernels.cell import SHAPES
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.own import OWN_KERNELS
from benchmarks.kernels.precompile import Precompiler, own_tasks
from benchmarks.kernels.registry import check_names, choose
from benchmarks.kernels.results import environment, write
from benchmarks.kernels.rivals import RIVALS
from benchmarks.kernels.runner import Found, Plan, Runner
from benchmarks.options import check_counts, check_file, check_seconds
from thermoe.errors import ConfigError, ThermoeError

ENTRIES = [*OWN_KERNELS, *RIVALS]
FORMATS_BY_DEFAULT = "bf16,fp8,int4,int2,int8,bank4"
LEAST_WINDOW_S = 2.0  # the sensors move every 100 ms


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every implementation that ran was right, 1 if one was wrong, 2 if the input is."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except ThermoeError as err:
        print(f"benchmarks: error: {err}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--ops", default="", help="comma list; all where left out")
    parser.add_argument("--impls", default="", help="comma list; all where left out")
    parser.add_argument("--shapes", default="qwen3-30b-a3b", help=f"comma list of {', '.join(SHAPES)}")
    parser.add_argument("--formats", default=FORMATS_BY_DEFAULT, help=f"comma list of {', '.join(FORMATS)}")
    parser.add_argument("--tokens", default="1,16,64,4096", help="comma list")
    parser.add_argument("--energy", action="store_true", help="joules too: a sustained window for each row with plan")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a sustained window, at least 2 on a GPU")
    parser.add_argument("--windows", type=int, default=1, help="sustained windows for each row")
    parser.add_argument("--rounds", type=int, default=5, help="passes over all arms of a cell")
    parser.add_argument("--jobs", type=int, default=None, help="processes that compile ahead; 1 for none beside")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--revision", default=None, help="git revision to write down where there is no checkout")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    return parser


def _run(options: argparse.Namespace) -> int:
    device, plan = find_device(options.device), make_plan(options)
    if device.type != "cuda" and plan.energy:
        raise ConfigError("--energy was asked for and there is no GPU to measure: leave it out, or run on one")
    if device.type == "cuda" and plan.seconds < LEAST_WINDOW_S:
        raise ConfigError(f"--seconds {plan.seconds}: sensors need {LEAST_WINDOW_S} at the least")
    check_file(options.out)
    started_s = time.monotonic()
    sensors = open_sensors(device)
    if plan.energy and sensors is None:
        raise ConfigError("--energy was asked for and NVML does not answer: leave it out, or mend the driver")
    read = sensors.read if sensors else None
    with torch.inference_mode():
        calibration = calibrate(device)
        env = environment(device, read, _settings(options), calibration, options.revision)
        _say(f"{env['gpu']}: {calibration_line(calibration)}")
        _compile(plan, device, options.jobs)
        runner = Runner(plan, device, card_of(calibration), read, _say)

        def keep(found: Found) -> None:
            env["seconds"] = round(time.monotonic() - started_s, 1)
            write(options.out, env, found.rows, found.skipped)

        runner.run(keep)
    wrong = sum(row["wrong"] is not None for row in runner.found.rows)
    _say(f"{len(runner.found.rows)} rows, {wrong} wrong, {len(runner.found.skipped)} skipped: {env['seconds']} s")
    return 1 if wrong else 0


def _compile(plan: Plan, device: torch.device, jobs: int | None) -> None:
    """Have Thermoe's kernels compiled by several processes before anything is timed."""
    started_s = time.monotonic()
    tasks = own_tasks(plan.entries, plan.shapes, plan.formats, plan.tokens, device)
    with contextlib.closing(Precompiler(jobs, device)) as compiler:
        failed = compiler.run(tasks)
    if device.type == "cuda":
        _say(f"compiled ahead for {len(tasks)} rows, {failed} did not run: {time.monotonic() - started_s:.1f} s")


def make_plan(options: argparse.Namespace) -> Plan:
    """What the options ask for.

    Raises:
        ConfigError: An unknown name or a number out of range.
    """
    shapes, formats = comma_list(options.shapes), comma_list(options.formats)
    if not shapes:
        raise ConfigError(f"--shapes {options.shapes!r} names none: choose from {', '.join(SHAPES)}")
    check_names("shape", shapes, list(SHAPES))
    check_names("format", formats, list(FORMATS))
    if options.rounds < 1 or options.windows < 1:
        raise ConfigError(f"--rounds {options.rounds} --windows {options.windows}: both need to be 1 or more")
    check_seconds(options.seconds)
    if options.jobs is not None:
        check_counts(options, "jobs")
    return Plan(
        entries=choose(ENTRIES, comma_list(options.ops), comma_list(options.impls)),
        shapes=shapes,
        formats=formats,
        tokens=token_counts(options.tokens),
        rounds=options.rounds,
        energy=options.energy,
        seconds=options.seconds,
        windows=options.windows,
    )


def comma_list(text: str) -> list[str]:
    """Names between commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def token_counts(text: str) -> list[int]:
    """Positive whole numbers between commas.

    Raises:
        ConfigError: Anything else, or nothing.
    """
    counts = [int(word) if word.isdecimal() else 0 for word in comma_list(text)]
    if not counts or min(counts) < 1:
        raise ConfigError(f"--tokens {text!r}: give whole numbers from 1 up between commas, such as 1,16,64")
    return counts


def find_device(name: str) -> torch.device:
    """The device asked for; "auto" is the GPU where there is one.

    Raises:
        ConfigError: A GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for and torch finds no GPU: check the driver, or use --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in ("out", "revision")}


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
