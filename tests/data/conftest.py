import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_files import an_image


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (objects, or raw text and bytes as they are) as lines of a file beside `red.png`."""
    (tmp_path / "red.png").write_bytes(an_image())

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        lines = [
            row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            for row in rows
        ]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write
