"""Cases that pipelines carry: a row and scripted replies in, columns out."""

from pathlib import Path
from typing import Any

import pytest

from scalecap.cli.cases import CaseError, main, read_cases
from scalecap.config.settings import CONF

PIPELINE = """
steps:
  init_caption: {stage: generate, prompt: Describe., image: image}
  kept: {stage: verify, texts: sentences, prompt: "Is {{ text }} so?"}
  sentences: {stage: split_sentences, text: init_caption}
cases:
  - case: a dog
    row: {image: "#ff0000"}
    replies: {init_caption: A dog. A cat., kept: [yes, 0.2]}
    expect: {kept: [A dog.]}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(PIPELINE)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml")))
def test_the_shipped_pipelines_pass_their_cases(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name]) == 0, capsys.readouterr().out
    if name != "none":
        assert f"ok     {name}: " in capsys.readouterr().out


def test_cases_run_from_a_file_anywhere(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(pipeline)]) == 0
    assert capsys.readouterr().out == f"ok     {pipeline}: a dog\n1 passed, 0 failed\n"


def test_a_difference_is_shown_line_by_line(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    pipeline.write_text(PIPELINE.replace("0.2]", "0.8]"))
    assert main([str(pipeline)]) == 1
    assert capsys.readouterr().out == (
        f"FAILED {pipeline}: a dog\n"
        "  kept: - expected, + got\n"
        "      - A dog.\n"
        "    + - A cat.\n"
        "0 passed, 1 failed\n"
    )


def test_own_files_are_found_and_tested(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = tmp_path / "own"
    (own / "prompts" / "mine").mkdir(parents=True)
    (own / "prompts" / "mine" / "short.yaml").write_text("# @package prompts\nmine: Is {{ text }} so?\n")
    text = PIPELINE.replace('"Is {{ text }} so?"', '"${prompts.mine}"')
    pipeline.write_text(f"defaults: [/prompts/mine@_global_.prompts: short, _self_]{text}")
    assert main([str(pipeline), "--config-dir", str(own)]) == 0
    (own / "pipeline").mkdir()
    pipeline.rename(own / "pipeline" / "own.yaml")
    assert main(["--config-dir", str(own)]) == 0
    out = capsys.readouterr().out
    assert "ok     own: a dog" in out
    assert "ok     default: " in out


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ('"${prompts.captoin}"', "${prompts.captoin}: no such key; did you mean 'prompts.caption'"),
        ("A: b", "mine.yaml, line 3, column "),
    ],
)
def test_an_error_of_the_file_is_reported(
    pipeline: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], prompt: str, message: str
):
    monkeypatch.chdir(pipeline.parent)
    pipeline.write_text(PIPELINE.replace("Describe.", prompt))
    assert main(["mine.yaml"]) == 1
    assert capsys.readouterr().out.startswith(f"FAILED mine.yaml: {message}")


def test_an_override_changes_what_is_tested(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(pipeline), "--set", "pipeline.steps.kept.threshold=0.1"]) == 1
    assert "+ - A cat." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[yes, 0.2]", "[yes]", "kept: more requests than the case has replies (1): 'Is A cat. so?'"),
        ("[yes, 0.2]", "[yes, 0.2, 0.3]", "kept: unused replies: 0.3"),
        ("[yes, 0.2]", "{dog: 0.9, bird: 0.1}", "none of the words dog, bird is in 'Is A cat. so?'"),
        ("[yes, 0.2]", "{dog: 0.9, cat: 0.1, bird: 0}", "kept: unused replies: 'bird'"),
        ("kept: [yes", "kpt: [yes", "replies: no step 'kpt' calls a model"),
        ("expect: {kept", "expect: {kpt", "expect: no column 'kpt'"),
        (", kept: [yes, 0.2]", "", "the case has no reply for this step: 'Is A dog. so?'"),
        ("expect: {kept: [A dog.]}", "expect: {}", "nothing is expected"),
        ("expect:", "expects:", "no such key 'expects'"),
        ("- case: a dog", "- name: a dog", "expected a mapping with a name under `case:`"),
        ("stage: verify", "stage: verfy", "verfy"),
    ],
)
def test_a_wrong_case_is_named(
    before: str, after: str, message: str, pipeline: Path, capsys: pytest.CaptureFixture[str]
):
    assert before in PIPELINE
    pipeline.write_text(PIPELINE.replace(before, after))
    assert main([str(pipeline)]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(("listed", "message"), [({}, "expected a list"), ([3], r"cases\[0\]")])
def test_anything_but_a_list_of_cases_is_refused(listed: Any, message: str):
    with pytest.raises(CaseError, match=message):
        read_cases(listed)


def test_a_missing_file_and_a_wrong_name_are_reported(capsys: pytest.CaptureFixture[str]):
    assert main(["absent.yaml", "sed"]) == 1
    output = capsys.readouterr().out
    assert "no such file: absent.yaml" in output
    assert "pipeline=sed: no such option" in output
