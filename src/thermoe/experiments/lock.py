"""One writer per run folder: a lock that its process holds to its end and that no kill leaves behind."""

import errno
import fcntl
import os
from pathlib import Path

from thermoe.errors import ConfigError

LOCK_FILE = "lock"
#: Locks of this process: process id, device and inode of the file -> its open descriptor.
_held: dict[tuple[int, int, int], int] = {}


def hold(folder: Path, run: Path) -> None:
    """Hold a run folder for this process until it ends; harmless when it is held already.

    The system drops the lock with the process, however it ends; the file itself stays and means nothing.
    The lock follows the file when its folder is renamed.

    Args:
        folder: Where the lock file lies or is made.
        run: What the user calls the folder.

    Raises:
        ConfigError: Another process holds it.
        OSError: The file cannot be made.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    found = os.fstat(descriptor)
    key = (os.getpid(), found.st_dev, found.st_ino)
    if key in _held:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(descriptor)
        raise ConfigError(
            f"another process writes the run {run}: wait until it has ended, or choose another --out"
        ) from err
    except OSError as err:
        # A file system without locks is no reason to refuse a run; it only goes unguarded there.
        if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            os.close(descriptor)
            raise
    _held[key] = descriptor
