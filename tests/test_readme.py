"""Tables in the docs are made from the code; `python tests/test_readme.py` writes them anew."""

import re
from pathlib import Path

import pytest

from scalecap import stages
from scalecap.config.settings import CONF

ROOT = Path(__file__).parent.parent
GROUPS = (
    "data",
    "model",
    "pipeline",
    "also",
    "evaluate",
    "labels",
    "prompts",
    "sampling",
    "engine",
    "cache",
    "runner",
)


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


TABLES = {ROOT / "conf" / "README.md": options, ROOT / "scalecap" / "stages" / "README.md": stage_table}


def filled(path: Path) -> str:
    """The page with its table as the code has it."""
    part = re.compile(r"(<!-- [^\n]*: made by [^\n]* -->\n).*?(<!-- end -->)", re.DOTALL)
    table = TABLES[path]()
    text, times = part.subn(lambda found: f"{found[1]}{table}\n{found[2]}", path.read_text(encoding="utf-8"))
    assert times == 1, f"{path} has no place for its table"
    return text


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_tables_are_fresh(path: Path):
    assert filled(path) == path.read_text(encoding="utf-8"), "run: python tests/test_readme.py"


PAGES = [
    ROOT / "README.md",
    *sorted(page for name in ("conf", "scalecap", "tests") for page in (ROOT / name).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!http|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(filled(path), encoding="utf-8")
