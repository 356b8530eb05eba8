"""Options of the programs that several of them check alike."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from thermoe.errors import ConfigError, ThermoeError


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Refuse numbers below 1 among the options named.

    Raises:
        ConfigError: One is.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: needs to be 1 or more")


def check_seconds(seconds: float) -> None:
    """Refuse a length that no window has.

    Raises:
        ConfigError: It is not finite, or not above 0.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"--seconds {seconds}: give a positive number")


def check_file(path: Path) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
        ConfigError: It is one.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give a file to write")


def check_folder(path: Path) -> None:
    """Refuse a file where a folder is to be written.

    Raises:
        ConfigError: It is one.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path} is a file: give a folder to write into")


def in_one_line(run: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None, program: str) -> int:
    """What `run` returns; 2, and one line, where the user can mend what was given."""
    try:
        return run(argv)
    except ThermoeError as err:
        print(f"{program}: error: {err}", file=sys.stderr)
        return 2
