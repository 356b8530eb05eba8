"""Files that are written whole or not at all, and never over what they were made of."""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thermoe.errors import ConfigError, DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends without an error.

    A reader, a crash or a full disk sees the old file or the new one. A link goes on naming its target, and a file
    that is there keeps its permissions.

    Raises:
        DataError: It cannot be written, or `path` is a folder, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        mode = _mode_of(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # less what the umask takes
            yield scratch
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            if mode is not None:
                scratch.chmod(mode)
            scratch.replace(target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise DataError(
            f"{path}: cannot be written ({err.strerror or err}); choose a folder with room and permission"
        ) from err


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, so that a reader or a crash sees the old file or the new one."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def writing_alone(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same from writing `path` while the block runs.

    A kill leaves no lock behind; a file system without locks goes unguarded.

    Raises:
        ConfigError: Another process writes it.
        DataError: Nothing can be written there.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, path)
    except OSError as err:
        raise DataError(
            f"{path}: cannot be written ({err.strerror or err}); choose a folder with room and permission"
        ) from err
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, path: Path) -> int:
    """The lock file, held; made again where whoever held it before took it away meanwhile."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        except BlockingIOError as err:
            os.close(descriptor)
            raise ConfigError(
                f"another process writes {path}: wait until it has ended, or choose another --out"
            ) from err
        except OSError as err:
            if err.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def refuse_to_overwrite(out: Path, inputs: Iterable[Path]) -> None:
    """Stop before a result takes the place of what it is made of.

    Raises:
        ConfigError: `out` is one of the inputs, under whatever name.
    """
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise ConfigError(f"--out {out}: is the input {path} itself, which would be lost; name another file")


def _mode_of(target: Path) -> int | None:
    """Permissions of a regular file, None where there is nothing yet."""
    if not target.exists():
        return None
    found = target.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{target}: cannot be written, it is no regular file; name a file")
    return stat.S_IMODE(found.st_mode)
