"""Tables in the docs are made from the code; `python tests/test_readme.py` rewrites them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from scalecap import stages
from scalecap.__main__ import COMMANDS
from scalecap.config.compose import compose, from_config
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
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
NAMED = re.compile(r"`((?:conf|scalecap|tests)/[\w./-]*|[\w./-]+\.py)`")
SCRIPT = re.compile(r"python (tests/[\w/]+\.py)")
MODULE = re.compile(r"python -m (scalecap[\w.]*\w)")


def anchors(page: Path) -> set[str]:
    """The fragments that links to a page's headings may have."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    missing = []
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path):
    """Paths in backticks, from the page's folder, the root or the package; scripts, modules."""
    text = page.read_text("utf-8")
    modules = [name.replace(".", "/") for name in MODULE.findall(text)]
    missing = []
    for name in {*NAMED.findall(text), *SCRIPT.findall(text), *modules}:
        places = [folder / name for folder in (page.parent, ROOT, ROOT / "scalecap")]
        below = "/" not in name and any(page.parent.rglob(name))
        if not below and not any(place.exists() or place.with_suffix(".py").exists() for place in places):
            missing.append(name)
    assert not missing


VERB = "|".join(COMMANDS)
COMMAND = re.compile(rf"^(?:PYTHONPATH=\S+ )?(?:python -m )?scalecap (?!(?:{VERB})\b)(.*)", re.MULTILINE)


def commands() -> list[Any]:
    """The arguments of each command that runs or checks the main job, of all pages."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            for line in COMMAND.findall(block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                found.append(pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_compose(words: list[str], tmp_path: Path):
    """The configuration of every command is valid: groups, options, keys and types."""
    own = tmp_path / "prompts" / "verify"
    own.mkdir(parents=True)
    (own / "careful.yaml").write_text('# @package prompts\nverify: "{{ text }}"\n')
    words = [word for word in words if word not in ("check", "-m", "--config-dir=mine")]
    words = [word for word in words if not word.startswith(("hydra", "pipeline.steps.verifier.threshold="))]
    named = any(word.startswith("model=") for word in words)
    if not named and any(word.startswith("model.vlm.name=") for word in words):
        words.append("model=own")
    for job in BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]:
        config, _ = compose([*job, f"output={tmp_path / 'run'}"], config_dirs=[tmp_path])
        from_config(config)


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(filled(path), encoding="utf-8")
