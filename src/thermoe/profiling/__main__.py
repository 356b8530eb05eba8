"""`python -m thermoe.profiling`: the profiler where the command line's library is not installed."""

import argparse
import sys
from pathlib import Path

from thermoe.errors import ThermoeError
from thermoe.profiling.command import RUNNERS, Profile

_FLAGS = ("latency-only", "energy-only", "smoke", "compiled", "skip-failed", "plain")


def main() -> int:
    """Parse, measure, and turn a user's error into one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m thermoe.profiling", description=Profile.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ops", default="", help="comma list")
    parser.add_argument("--known", default="", help="comma list")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runner", default=RUNNERS[0], choices=RUNNERS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--window-s", type=float, default=2.0)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--no-resume", dest="resume", action="store_false")
    parser.add_argument("--since", default="")
    for flag in _FLAGS:
        parser.add_argument(f"--{flag}", action="store_true")
    options = vars(parser.parse_args())
    options["ops"] = tuple(name for name in options["ops"].split(",") if name)
    options["known"] = tuple(Path(name) for name in options["known"].split(",") if name)
    try:
        return Profile(**options).execute()
    except ThermoeError as err:
        sys.stderr.write(f"thermoe: error: {err}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
