"""What would go to the hub: the data set with its card."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard
from huggingface_hub.errors import LocalTokenNotFoundError
from runs import Command, Rows, captions

from scalecap.report import push
from scalecap.report.card import code, fenced


@pytest.fixture
def ran(typed: Command, rows: Rows, tmp_path: Path) -> Callable[..., Path]:
    """Runs the pipeline on two good images and a broken one; returns the run's folder."""

    def run(*words: str) -> Path:
        folder = tmp_path / "runs" / "dogs"
        given = ["data=jsonl", rows(3, broken=(1,)), "evaluate=density", f"output={folder}"]
        assert typed(*given, "progress=false", *words) == 3
        return folder

    return run


@pytest.fixture
def pushed(command: Command) -> Command:
    """Runs `scalecap push <words>`; returns the exit code."""
    return partial(command, "push")


def test_a_folder_loads_as_the_hub_would(ran: Callable[..., Path], pushed: Command, tmp_path: Path):
    to = tmp_path / "to"
    assert pushed(ran("write.image=bytes"), "me/dogs", "--to", to, "--license", "cc-by-4.0") == 0
    names = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    assert names == ["README.md", "data/train-00000-of-00001.parquet"]
    loaded = datasets.load_dataset(str(to), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.features["image"] == datasets.Image()
    assert loaded["final_caption"] == ["A dog, brown.", None, "A dog, brown."]
    assert [each and each.size for each in loaded["image"]] == [(30, 30), None, (30, 30)]
    card = DatasetCard.load(to / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.size_categories == ["n<1K"]
    assert "2 rows succeeded; 1 failed" in card.text
    assert "The images are in the column `image`." in card.text
    assert "License" not in card.text


def test_the_card_says_how_the_data_set_was_made(ran: Callable[..., Path], pushed: Command, tmp_path: Path):
    folder = ran()
    assert pushed(folder, "me/dogs", "--to", tmp_path / "to") == 0
    card = DatasetCard.load(tmp_path / "to" / "README.md")
    assert card.data.license == "unknown"
    summary = json.loads((folder / "summary.json").read_text())
    for words in (
        "**License:** not stated",
        "The images are not included; the column `image` has their names.",
        'load_dataset("me/dogs"',
        "| `golden_sentences` | 2 | 2 |",
        "| `density.final_caption.words` | 3 | 3 to 3 | 2 |",
        "Is it true? {{ text }} Answer yes or no.",
        "threshold: 0.5",
        summary["command"],
        f"| vlm | `{summary['models']['vlm']}` |",
        f"| datasets | {summary['versions']['datasets']} |",
        "A dog, brown.",
    ):
        assert words in card.text


def test_the_card_leaks_no_secret_and_shows_a_captioned_row(
    ran: Callable[..., Path], pushed: Command, tmp_path: Path
):
    folder = ran()
    rows = captions(folder)
    rows[0]["final_caption"] = None
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((folder / "summary.json").read_text())
    summary["command"] = "python -m scalecap 'data.path=https://me:secret@host/a.parquet?X-Sig=S' seed=1"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert pushed(folder, "me/dogs", "--to", tmp_path / "to") == 0
    text = DatasetCard.load(tmp_path / "to" / "README.md").text
    assert "python -m scalecap 'data.path=https://host/a.parquet' seed=1" in text
    assert "A dog, brown." in text
    assert "```\nNone\n```" not in text


@pytest.mark.parametrize(("pipeline", "checks"), [("default", True), ("direct", False)])
def test_the_card_claims_checks_only_where_there_are_some(
    ran: Callable[..., Path], pushed: Command, tmp_path: Path, pipeline: str, checks: bool
):
    assert pushed(ran(f"pipeline={pipeline}"), "me/dogs", "--to", tmp_path / "to") == 0
    text = DatasetCard.load(tmp_path / "to" / "README.md").text
    assert ("checked against the image" in text) == checks


def test_a_caption_stays_text(ran: Callable[..., Path], pushed: Command, tmp_path: Path):
    folder = ran()
    hostile = "```\n---\nlicense: mit\n---\n# A heading\n<script>alert(1)</script>\n````\n![x](https://x/y)\n"
    rows = captions(folder)
    rows[0]["final_caption"] = hostile
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pushed(folder, "me/dogs", "--to", tmp_path / "to") == 0
    text = (tmp_path / "to" / "README.md").read_text()
    assert DatasetCard(text).data.license == "unknown"
    inside = re.search(r"^(`{5,})\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert inside is not None
    assert inside[2] == hostile


@pytest.mark.parametrize("text", ["", "a", "`", "```", "a\n````\nb", "~~~", "`" * 40])
def test_no_text_ends_its_code_block(text: str):
    head, *body, foot = fenced(text, "yaml").split("\n")
    assert head == foot + "yaml"
    assert "\n".join(body) == text
    assert not any(re.match(rf" {{0,3}}`{{{len(foot)},}}\s*$", line) for line in body)


@pytest.mark.parametrize(
    ("text", "markdown"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("a\n\nb", "`a b`"), ("a|b", r"`a\|b`")]
)
def test_inline_code(text: str, markdown: str):
    assert code(text) == markdown


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "dataset"), "has no data set"),
        (lambda folder: (folder / "summary.json").unlink(), "is not finished"),
        (
            lambda folder: (folder / "summary.json").write_text('{"status": "interrupted", "reason": ""}'),
            "is not finished (interrupted)",
        ),
        (lambda folder: shutil.rmtree(folder), "expected the folder of a run"),
        (lambda folder: (folder.parent.parent / "to" / "mine").mkdir(parents=True), "is not empty"),
    ],
)
def test_folders_that_cannot_be_pushed(
    ran: Callable[..., Path],
    pushed: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    message: str,
):
    folder = ran()
    spoil(folder)
    assert pushed(folder, "me/dogs", "--to", tmp_path / "to") == 1
    assert message in capsys.readouterr().err


def test_an_invalid_name_is_refused(pushed: Command, tmp_path: Path):
    assert pushed(tmp_path, "me/dogs/more", "--to", tmp_path / "to") == 1


class Hub:
    """An HfApi that keeps what it is given in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Any] = {}

    def create_repo(self, repo_id: str, **more: Any) -> str:
        self.made = {"repo_id": repo_id, **more}
        return f"https://hub/datasets/{repo_id}"

    def upload_folder(self, *, folder_path: Path, delete_patterns: str, **_: Any) -> None:
        for path in self.folder.glob(delete_patterns):
            path.unlink()
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)


def test_pushing_again_replaces_the_shards(
    ran: Callable[..., Path],
    pushed: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("data/train-00000-of-00002.parquet", "notes.md"):
        (tmp_path / "hub" / name).write_text("of before")
    folder = ran()
    capsys.readouterr()
    assert pushed(folder, "me/dogs", "--private") == 0
    assert capsys.readouterr().out == "https://hub/datasets/me/dogs\n"
    assert hub.made == {"repo_id": "me/dogs", "private": True, "repo_type": "dataset", "exist_ok": True}
    names = sorted(path.relative_to(hub.folder).as_posix() for path in hub.folder.rglob("*.*"))
    assert names == ["README.md", "data/train-00000-of-00001.parquet", "notes.md"]
    loaded = datasets.load_dataset(str(hub.folder), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(loaded) == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [(LocalTokenNotFoundError("none"), "hf auth login"), (RuntimeError("no route"), "no route")],
)
def test_errors_of_the_hub_are_reported(
    ran: Callable[..., Path],
    pushed: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
):
    class Closed:
        def create_repo(self, *_: Any, **__: Any) -> str:
            raise error

    monkeypatch.setattr(push, "HfApi", Closed)
    assert pushed(ran(), "me/dogs") == 1
    assert message in capsys.readouterr().err
