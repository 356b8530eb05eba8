"""Runs programs of others: profilers, and scripts under them. What fails comes back as one line."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from thermoe.errors import CostError

REMEDIES = {
    "nsys": "install NVIDIA Nsight Systems and put it on PATH, or use another runner",
    "ncu": "install NVIDIA Nsight Compute and put it on PATH, or use another runner",
}
"""Programs that profile, and what to do where they are missing."""
_MOST_CHARS = 600


class ProfilerError(CostError):
    """A profiler is not there, or it or what it ran failed; the message holds its last words."""


class ProfilerUnusableError(ProfilerError):
    """It can profile nothing here, whatever is run."""


def find_program(name: str, remedy: str) -> str:
    """Path of an executable.

    Raises:
        ProfilerUnusableError: If there is none of that name.
    """
    found = shutil.which(name)
    if found is None:
        raise ProfilerUnusableError(f"no executable {name}: {remedy}")
    return found


def run_program(
    command: Sequence[str | Path],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> str:
    """Run a command to its end; what it wrote to stdout.

    Args:
        command: Program and arguments.
        timeout_s: It and all that it started are killed after this [s].
        environment: Variables set beside those of this process.
        log: File in which the program explains a failure, beside stderr.

    Raises:
        ProfilerError: If it cannot be started, ends with another code than 0, or takes too long.
    """
    words = [str(word) for word in command]
    name = Path(words[0]).name
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
    except OSError as error:
        raise ProfilerUnusableError(f"{name} cannot be started ({error.strerror or error})") from None
    with process:
        try:
            output, complaint = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise ProfilerError(f"{name} did not end in {timeout_s:.0f} s and was killed") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace") if log is not None and log.is_file() else ""
        raise ProfilerError(f"{name} ended with {process.returncode}: {last_words(complaint, said, output)}")
    return output


def last_words(*texts: str) -> str:
    """The end of the first text that says anything, in one line."""
    lines = next((" ".join(text.split()) for text in texts if text.strip()), "it said nothing")
    return lines if len(lines) <= _MOST_CHARS else f"... {lines[-_MOST_CHARS:]}"
