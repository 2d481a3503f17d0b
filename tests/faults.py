"""The table of faults in `scalecap/run/README.md`, which `test_faults.py` and `test_kills.py` test by row."""

import re
from pathlib import Path
from typing import Any

import pytest

TABLE = (Path(__file__).parent.parent / "scalecap" / "run" / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| \*\*(.+?)\*\*.* \| .+ \| .+ \| (.+?) \|$",
    TABLE.partition("<!-- faults -->")[2].partition("<!-- end -->")[0],
    re.MULTILINE,
)
CODES = {fault: {int(code) for code in re.findall(r"\d+", codes)} for fault, codes in ROWS}
"""The name of each fault, in bold in the table, to its exit codes there."""


def fault(name: str) -> Any:
    """Marks a test as that of a row of the table; the test gets the exit codes from there."""
    return pytest.mark.parametrize("codes", [pytest.param(CODES.get(name, set()), id=name)])
