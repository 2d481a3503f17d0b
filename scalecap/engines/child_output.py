"""What child processes print: kept in a file, and searched for the error if one dies."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def redirect_output(output: IO[str] | None) -> Iterator[None]:
    """Redirects stdout and stderr, of this process and of children started inside the block, to a file."""
    if output is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def printed_error(output: IO[str] | None) -> str:
    """The first error that a child process printed before it died; empty if there is none."""
    if output is None:
        return ""
    output.seek(0)
    errors = re.findall(r"\b(\w+(?:Error|Exception): .+)$", output.read(), re.MULTILINE)
    return next((error for error in errors if "Engine core initialization failed" not in error), "")
