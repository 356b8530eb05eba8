"""A progress bar on a terminal, silence elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """Arm, batch, tokens per second of host time, and time left.

    Args:
        console: Where to draw; nothing is drawn unless it is a terminal.
        total: Batches of all arms.
        done: Batches that were finished before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=total, completed=done, speed="")
        self._tokens = 0
        self._begin_s = time.perf_counter()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, workload: str, seed: int, strategy: str, batch: int) -> None:
        """A batch begins."""
        self._progress.update(self._task, description=f"{workload} {strategy} seed {seed} batch {batch}")

    def finish(self, num_tokens: int) -> None:
        """A batch is on disk."""
        self._tokens += num_tokens
        speed = self._tokens / max(time.perf_counter() - self._begin_s, 1e-9)
        self._progress.update(self._task, advance=1, speed=f"{speed:,.0f} tokens/s")
