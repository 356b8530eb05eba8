"""Forecasts of core temperature on recorded load steps: record sensors under known loads, then judge the predictor.

`python -m benchmarks.heat --record --out DIR` keeps a GPU busy for about 160 s with seeded random loads and writes
the sensors at 10 Hz with the plan of the loads. `python -m benchmarks.heat --evaluate DIR --out FILE` fits the
thermal predictor to the first part of each trace and forecasts 2 s ahead in the rest.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from thermoe.errors import ThermoeError


def main(argv: Sequence[str] | None = None) -> int:
    """0 if done, 1 if an evaluation misses its target, 2 if the input is wrong."""
    options = _parser().parse_args(argv)
    try:
        return _record(options) if options.record else _evaluate(options)
    except ThermoeError as err:
        print(f"benchmarks.heat: error: {err}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heat", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", action="store_true", help="record a trace into the folder --out")
    what.add_argument("--evaluate", type=Path, metavar="DIR", help="judge the predictor on the traces of a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of traces, or file of the results")
    parser.add_argument("--seconds", type=float, default=160.0, help="length of the recording")
    parser.add_argument("--seed", type=int, default=0, help="of the loads and of their order")
    parser.add_argument("--board", choices=("gpu", "twin"), default="gpu", help="twin: simulated, on any machine")
    parser.add_argument("--index", type=int, default=0, help="NVML and CUDA index of the GPU")
    parser.add_argument("--fit-share", type=float, default=0.5, help="share of each trace that is fitted")
    return parser


def _record(options: argparse.Namespace) -> int:
    from benchmarks.heat_record import open_board, record

    with open_board(options.board, options.index, options.seed) as board:
        trace = record(board, options.seconds, options.seed)
    path = trace.write(options.out)
    print(f"{len(trace.states)} states under {len(trace.loads)} loads ({trace.kind}) in {path}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from benchmarks.heat_evaluate import evaluate, summary_lines
    from benchmarks.heat_trace import read_traces

    results = evaluate(read_traces(options.evaluate), options.fit_share)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(summary_lines(results)))
    return 0 if results["target_met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
