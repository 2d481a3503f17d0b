"""File locks: one process writes to a file at a time."""

import errno
import logging
from io import FileIO

log = logging.getLogger(__name__)

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""


def lock(file: FileIO, *, shared: bool) -> None:
    """Locks the file until it is closed or the process ends.

    Where locks are not supported (Lustre without the option, some NFS, Windows), it only logs a warning.

    Args:
        shared: a shared lock instead of an exclusive one.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: any other error of the file system.
    """
    try:
        import fcntl
    except ImportError:
        log.warning(
            "%s can't be locked on this system: do not start two runs with the same output=. scalecap"
            " supports Linux and macOS; on Windows, run it in WSL",
            file.name,
        )
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        log.warning(
            "%s can't be locked, its file system does not support it (%s): do not start two runs with the"
            " same output=",
            *(file.name, error.strerror),
        )
