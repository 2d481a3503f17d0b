"""Processes below a process, and whether they live."""

from pathlib import Path


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
