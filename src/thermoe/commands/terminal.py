"""What the commands that run something share: where they print, where they write, what they say when interrupted."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console

_FILE_WIDTH = 160


def default_folder(name: str) -> Path:
    """`runs/TIME-NAME`, by the local clock."""
    return Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}"


def open_console() -> Console:
    """Where tables go; wide enough for them where nobody's terminal sets the width."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


@contextmanager
def told_how_to_resume(folder: Path) -> Iterator[None]:
    """On CTRL-C say what has been kept; the command line turns the interrupt into its exit code."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir():
            print(f"finished batches are kept: thermoe run --resume {folder}", file=sys.stderr)
        raise
