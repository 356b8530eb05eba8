"""How far a run is: a bar on a terminal, now and then a plain line on stderr where there is none."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_INTERVAL_S = 5.0


class PlainLines:
    """Lines on stderr, none within `LINE_INTERVAL_S` of the one before or of the beginning."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def say(self, line: str) -> None:
        """Write the line if it is time for one."""
        now_s = time.monotonic()
        if now_s - self._last_s >= LINE_INTERVAL_S:
            self._last_s = now_s
            print(f"thermoe: {line}", file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


@contextmanager
def telling(console: Console, doing: str) -> Iterator[Callable[[str], None]]:
    """While something is done, takes what is going on; a quiet console tells nobody."""
    if console.quiet:
        yield lambda what: None
    elif (terminal := _terminal(console)) is not None:
        with terminal.status(doing) as status:
            yield lambda what: status.update(f"{doing}: {what}")
    else:
        lines = PlainLines()
        yield lambda what: lines.say(f"{doing}: {what}")


class RunProgress:
    """Arm, batch, tokens per second of host time, and time left.

    Args:
        console: Where the run prints; a bar is drawn there if it is a terminal, or on stderr if that is one, and
            elsewhere plain lines go to stderr. A quiet console tells nobody.
        total: Batches of all arms.
        done: Batches that were finished before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        terminal = _terminal(console)
        self._lines = PlainLines() if terminal is None and not console.quiet else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=terminal or console,
            disable=terminal is None,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=total, completed=done, speed="")
        self._arm = "starting"
        self._total, self._before, self._done = total, done, done
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
        self._arm = f"{workload} {strategy} seed {seed} batch {batch}"
        self._progress.update(self._task, description=self._arm)

    def tick(self) -> None:
        """The batch goes on: now and then a line says so."""
        if self._lines is not None:
            self._lines.say(f"{self._done} of {self._total} batches{self._rest()}; now {self._arm}")

    def finish(self, num_tokens: int) -> None:
        """A batch is on disk."""
        self._tokens += num_tokens
        self._done += 1
        self._progress.update(self._task, advance=1, speed=self._speed())

    def _rest(self) -> str:
        """Speed and time left, as soon as a batch has shown them."""
        new = self._done - self._before
        if new == 0:
            return ""
        left_s = self._elapsed_s() / new * (self._total - self._done)
        left = f"{left_s:.0f} s" if left_s < 100 else f"{left_s / 60:.0f} min"
        return f", {self._speed()}, {left} left"

    def _speed(self) -> str:
        return f"{self._tokens / self._elapsed_s():,.0f} tokens/s"

    def _elapsed_s(self) -> float:
        return max(time.perf_counter() - self._begin_s, 1e-9)


def _terminal(console: Console) -> Console | None:
    """Where a bar can be drawn."""
    if console.quiet:
        return None
    return next((c for c in (console, Console(stderr=True)) if c.is_terminal), None)
