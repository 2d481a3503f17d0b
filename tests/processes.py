"""Python in a process of its own; processes below a process, and whether they live."""

import os
import subprocess
import sys
from pathlib import Path

from scalecap.config.settings import CONF


def python(*words: str, path: str = str(CONF.parent)) -> subprocess.CompletedProcess[str]:
    """`python <words>` in the working folder, with the packages of `path`."""
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=600)


def below(pid: int) -> list[int]:
    """All processes below this one."""
    children = [
        int(each)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for each in task.read_text().split()
    ]
    return children + [each for child in children for each in below(child)]


def command(pid: int) -> str:
    """What the process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
