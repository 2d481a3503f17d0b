"""A file that one process writes to at a time."""

import errno
import logging
from io import FileIO

log = logging.getLogger(__name__)

_NONE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks answers."""


def lock(file: FileIO, *, shared: bool) -> None:
    """Locks the file until it is closed, or its process ends however it ends.

    Where there are no locks (Lustre without the option, some NFS, Windows) it warns, and goes on without.

    Args:
        shared: others may have it shared too; else nobody else has it.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file can't be read or written either.
    """
    try:
        import fcntl
    except ImportError:
        log.warning(
            "%s can't be locked on this system: no two runs may write to one output= at once. scalecap is"
            " made for Linux and macOS; on Windows, run it in WSL",
            file.name,
        )
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NONE:
            raise
        log.warning(
            "%s can't be locked, since its file system has no locks (%s): take care that no other run writes"
            " to the same output= at once",
            *(file.name, error.strerror),
        )
