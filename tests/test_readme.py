"""README's tables are made from the code; `python tests/test_readme.py` writes them anew."""

import re
from pathlib import Path

from scalecap import stages
from scalecap.settings import CONF

README = Path(__file__).parent.parent / "README.md"
GROUPS = ("data", "model", "pipeline", "also", "evaluate", "prompts", "sampling", "engine", "cache")


def options() -> str:
    """Each group's options with the first line of their files."""
    lines = ["| option | what it is |", "| --- | --- |"]
    for group in GROUPS:
        for file in sorted((CONF / group).rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
            words = [line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines()]
            what = next(line for line in words if not line.startswith("@package"))
            lines.append(f"| `{file.parent.relative_to(CONF).as_posix()}={file.stem}` | {what} |")
    return "\n".join(lines)


def stage_table() -> str:
    """Each stage with the columns it reads, its settings and its side columns."""
    lines = ["| stage | reads | settings | writes beside its column | what it does |", "| --- " * 5 + "|"]
    for name in stages.names():
        found = stages.find(name)
        if found is None or "/" in name:
            continue
        cells = [
            ", ".join(f"`{column}`" for column in found.columns),
            ", ".join(f"`{setting}`" for setting in found.settings),
            ", ".join(f"`<step>_{side}`" for side in found.side),
            found.summary,
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """README with its tables as the code has them."""
    for name, table in (("options", options()), ("stages", stage_table())):
        part = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end -->)", re.DOTALL)
        text, times = part.subn(lambda found, table=table: found[1] + table + "\n" + found[2], text)
        assert times == 1, f"README has no place for the {name}"
    return text


def test_tables_are_fresh():
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python tests/test_readme.py"


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
