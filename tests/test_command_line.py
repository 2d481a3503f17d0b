"""What is typed, and what comes back: exit codes, messages, folders."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_files import an_image
from processes import python
from runs import Command, captions

import scalecap.engines
import scalecap.runner
from scalecap.config.settings import CONF, SettingsError
from scalecap.engines.base import EngineError
from scalecap.engines.scripted import Scripted
from scalecap.report.run_page import write_report
from scalecap.run.folder import FolderError


def test_the_default_captions_the_sample(typed: Command, opened: list[Any], tmp_path: Path, capsys: Any):
    assert typed("data.limit=2") == 0
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert len(captions(folder)) == 2
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert "model" in (folder / ".hydra" / "config.yaml").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"] == "python -m scalecap data.limit=2"
    assert [model.name for model in opened] == ["scenes"]  # one engine for both roles
    out = capsys.readouterr().out
    assert "2 rows captioned" in out
    assert "captions.jsonl" in out


def test_output_names_the_folder_and_the_same_command_resumes(
    typed: Command, opened: list[Any], tmp_path: Path
):
    assert typed("output=my run", "data.limit=1") == 0
    assert typed("output=my run", "data.limit=1") == 0
    assert len(opened) == 1
    assert (tmp_path / "my run" / "captions.jsonl").is_file()
    assert (tmp_path / "my run" / ".hydra").is_dir()


def test_ctrl_c_after_the_rows_says_how_to_resume(
    typed: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scalecap.runner, "write", interrupted)
        assert typed("data.limit=2") == 130
    (folder,) = Path.cwd().glob("outputs/*/*")
    assert capsys.readouterr().err.endswith(f"\n  python -m scalecap data.limit=2 output={folder}\n")
    assert typed("data.limit=2", f"output={folder}") == 0
    assert "2 rows captioned (2 from an earlier run)" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["test", "direct"]])
def test_a_closed_pipe_ends_a_command_without_a_traceback(words: list[str]):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    command = [sys.executable, "-m", "scalecap", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_a_command_without_a_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scalecap.report.comparison.read_runs", interrupted)
    assert command("compare", "runs") == 130
    assert capsys.readouterr().err == "Interrupted\n"


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("data.path=a/{000..001}.tar", """'data.path="a/{000..001}.tar"'"""),
        ("write.select=row_id > 3", """'write.select="row_id > 3"'"""),
        ("prompts.caption={{ it's", """'key="value"'"""),
    ],
)
def test_a_value_that_must_be_quoted_is_shown_quoted(typed: Command, capsys: Any, word: str, fix: str):
    assert typed(word) == 1
    assert capsys.readouterr().err.endswith(f"; quote special characters: {fix}\n")
    if "key" not in fix:
        typed("check", *shlex.split(fix))
        assert "quote special characters" not in capsys.readouterr().err


def test_a_path_in_the_home_folder_may_begin_with_a_tilde(typed: Command, tmp_path: Path, capsys: Any):
    """A shell expands it in `output=~/x` at most, not in `data.path=~/x`."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.png").write_bytes(an_image())
    for words in (["data.path=~/", "output='~/run'"], ['data.path="~/"', "output=~/run"]):
        assert typed("data=folder", *words) == 0, capsys.readouterr().err
    assert "(1 from an earlier run)" in capsys.readouterr().out
    assert (home / "run" / "captions.jsonl").is_file()
    assert not (tmp_path / "~").exists()


def test_an_empty_output_is_refused(typed: Command, tmp_path: Path, capsys: Any):
    for words in (["output="], ["output=", "check=true"]):
        assert typed(*words, "data.limit=1") == 1
        assert "output= is empty: name a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_that_resumes_can_be_copied(
    typed: Command, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    folder = tmp_path / "my files (2), old"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "rows.jsonl").write_text('{"image": "later.png"}')
    assert typed("data=jsonl", "data.path=rows.jsonl", "max_failures=null") == 1
    command = capsys.readouterr().out.splitlines()[-1]
    (folder / "later.png").write_bytes(an_image())
    assert typed(*shlex.split(command)[3:]) == 0
    assert len(list((folder / "outputs").glob("*/*"))) == 1


def test_a_misspelt_command_is_reported(typed: Command, capsys: Any):
    assert typed("reprot", "runs/x") == 1
    assert capsys.readouterr().err == "error: reprot: no such command; did you mean 'report'?\n"


def test_a_refused_command_leaves_the_run_in_its_folder_unchanged(typed: Command, tmp_path: Path):
    folder = tmp_path / "run"
    assert typed("output=run", "data.limit=2") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for words in (["data.seed=5"], ["data=jsonl", "data.path=nowhere"], ["pipeline.steps.q_list.stage=nil"]):
        assert typed("output=run", *words) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert write_report(folder).is_file()

    assert typed("output=new", "data=jsonl", "data.path=nowhere") == 1
    assert "nowhere" in (tmp_path / "new" / ".hydra" / "error.txt").read_text()
    with pytest.raises(FolderError, match=r"failed: .*nowhere"):
        write_report(tmp_path / "new")
    assert typed("output=new", "data.limit=1") == 0
    assert not (tmp_path / "new" / ".hydra" / "error.txt").exists()
    overrides = (tmp_path / "new" / ".hydra" / "overrides.yaml").read_text()
    assert overrides == "- output=new\n- data.limit=1\n"


def test_options_and_overrides_may_be_mixed(typed: Command, tmp_path: Path, capsys: Any):
    mine = tmp_path / "own" / "prompts" / "caption" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package prompts\ncaption: What is it?\n")
    for option in ("--config-dir=own", "-cd own"):
        words = ["check=true", *option.split(" "), "~pipeline.steps.final_caption", "prompts/caption=mine"]
        assert typed(*words) == 0
        out = capsys.readouterr().out
        assert "What is it?" in out
        assert "final_caption" not in out


@pytest.mark.parametrize(
    ("file", "text", "words", "message"),
    [
        (
            "prompts/verify/x",
            "# @package prompts\nverify: A: it?",
            "prompts/verify=x",
            "x.yaml, line 2, column 10: ",
        ),
        (
            "prompts/verify/x",
            "verify: Seen?",
            "prompts/verify=x",
            "a file of prompts/ begins with `# @package prompts`",
        ),
        ("also/x", "steps: {a: {stage: vote}}", "also=x", "of also/ begins with `# @package pipeline`"),
        (
            "evaluate/x",
            "pipeline: {steps: {}}",
            "evaluate=x",
            "of evaluate/ begins with `# @package _global_`",
        ),
        ("data/x", "source: folder", "data = x", "write key=value without spaces"),
    ],
)
def test_an_invalid_config_file_is_named(
    typed: Command, tmp_path: Path, capsys: Any, file: str, text: str, words: str, message: str
):
    path = tmp_path / "mine" / f"{file}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert typed("check=true", "--config-dir=mine", *words.split(" ")) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("word", "meant"), [("args.tensor_parallel_size=2", "vllm"), ("extra_body.top_k=2", "openai")]
)
def test_arguments_of_another_engine_are_refused(command: Command, capsys: Any, word: str, meant: str):
    assert command("engine=transformers", f"engine.{word}", "data.limit=1") == 1
    key = word.partition("=")[0]
    assert f"engine.{key} needs engine={meant}, but the engine is transformers" in capsys.readouterr().err


def test_a_run_resumes_with_the_code_it_was_started_with(
    typed: Command, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = (
        "from scalecap.stages import stage\n@stage\ndef few(texts: list[str]) -> list[str]:\n    return texts"
    )
    (tmp_path / "changing.py").write_text(code)
    words = ["pipeline.imports=[changing]", "pipeline.steps.x={stage: changing/few, texts: sentences}"]
    assert typed(*words, "output=run", "data.limit=1") == 0
    assert typed(*words, "output=run", "data.limit=1") == 0
    (tmp_path / "changing.py").write_text(code + "[:1]\n")
    assert typed(*words, "output=run", "data.limit=1") == 1
    assert "another config (code.changing/few: was " in capsys.readouterr().err


def test_a_wrong_objective_is_reported_before_any_row(typed: Command, tmp_path: Path, capsys: Any):
    assert typed("evaluate=scenes", "objective=scenes.precison", "output=run", "data.limit=1") == 1
    assert "no row has objective=scenes.precison; available metrics: scenes." in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]["done"] == 1
    assert not (tmp_path / "run" / ".hydra" / "error.txt").exists()
    words = ("-m", "seed=1,2", "evaluate=scenes", "objective=scenes.precison", "data.limit=1")
    assert typed(*words, "hydra.sweep.dir=sweep") == 1
    assert "no run has objective=scenes.precison; did you mean " in capsys.readouterr().err
    assert (tmp_path / "sweep" / "comparison.md").exists()


def test_an_unknown_option_is_reported_with_the_usage(typed: Command, capsys: Any):
    assert typed("--halp") == 2
    assert "scalecap: error: unrecognized arguments: --halp" in capsys.readouterr().err


def test_an_error_that_is_its_own_cause_is_reported(typed: Command, monkeypatch: Any, capsys: Any):
    monkeypatch.setenv("OC_CAUSE", "1")  # as OmegaConf chooses where a tracer is set
    assert typed("+data.limt=3") == 1
    assert "data.limt: no such key; did you mean 'data.limit'" in capsys.readouterr().err


def test_minimum_values_are_accepted(compose: Callable[..., Any]):
    least = ["data.limit", "data.count", "evaluate.words", "rows_in_flight", "engine.concurrency"]
    least += ["engine.batch_size", "runner.actors", "sampling.max_tokens"]
    none = ["runner.gpus_per_actor", "engine.retries", "sampling.temperature"]
    compose(*(f"{key}=1" for key in least), *(f"{key}=0" for key in none), "sampling.top_p=1")
    for key in least:
        with pytest.raises(SettingsError, match=f"{re.escape(key)}=0: must be 1 or more"):
            compose(f"{key}=0")
    for key in none:
        with pytest.raises(SettingsError, match=rf"{re.escape(key)}=-1(\.0)?: must be 0 or more"):
            compose(f"{key}=-1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sampling.top_p=0", "sampling.top_p=0.0: must be above 0 and at most 1"),
        ("sampling.top_p=1.1", "sampling.top_p=1.1: must be above 0 and at most 1"),
        ("sampling.repetition_penalty=0", "sampling.repetition_penalty=0.0: must be above 0"),
        (
            "max_failures=many",
            "max_failures=many: expected a count (1 or more), a percentage (5%) or null",
        ),
        (
            "max_failures=101%",
            "max_failures=101%: expected a count (1 or more), a percentage (5%) or null",
        ),
        ("min_mass=1.1", "min_mass=1.1: must be a probability, from 0 to 1"),
        ("resume=yes", "resume=yes: expected same or force"),
        ("data.relative_to=cdw", "data.relative_to=cdw: expected file or cwd"),
        ("write.image=byte", "write.image=byte: invalid value; did you mean 'bytes'"),
        ("write.format=[webdatset]", "write.format=webdatset: invalid value; did you mean 'webdataset'"),
        ("write.sidecars=text", "write.sidecars=text: invalid value; did you mean 'txt'"),
        ("write.sidecars=txt write.beside=old", "write.beside=old: invalid value; available: new, replace"),
        ("write.beside=new", "write.beside=new requires write.sidecars=txt or json"),
        ("write.prefix=sks", "write.prefix: requires write.sidecars=txt"),
        ("write.select=')('", "write.select: ')(' is not an expression"),
        ("write.sidecars=txt write.template='{{'", "write.template: line 1"),
        ("engine.name=vlm", "engine.name=vlm: no such engine; did you mean 'vllm'"),
        ("runner.name=rai", "runner.name=rai: no such runner; did you mean 'ray'"),
        ("engine=openai", "engine.name=openai needs engine.base_url=http://HOST:PORT/v1"),
        ("engine.jpeg_quality=0", "engine.jpeg_quality=0: must be 1 to 100"),
        ("engine.base_url=localhost:8000/v1", "engine.base_url: expected http://HOST:PORT/v1, or a list of"),
        ("engine.base_url=[http://a/v1,b]", "engine.base_url: expected http://HOST:PORT/v1, or a list of"),
        ("engine.timeout=0", "engine.timeout=0.0: must be above 0"),
        ("engine.extra_body.max_tokens=9", "engine.extra_body.max_tokens: set sampling.max_tokens"),
        ("engine.extra_body.stream=true", "engine.extra_body.stream: set by scalecap itself"),
        (
            "model.llm.chat_template_kwargs.tokenize=true",
            "model.llm.chat_template_kwargs.tokenize: set by scalecap itself",
        ),
        (
            "evaluate=density evaluate.caption=null",
            "evaluate.caption=COLUMN is required: the captions to score",
        ),
    ],
)
def test_an_invalid_value_is_reported(compose: Callable[..., Any], words: str, message: str):
    with pytest.raises(SettingsError) as caught:
        compose(*words.split())
    assert message in str(caught.value)


def test_a_closed_stdout_is_not_an_error(typed: Command):
    assert typed("output=run", "data.limit=1") == 0
    for words in ("check=true", "output=run data.limit=1"):
        line = f"{sys.executable} -m scalecap {words} | head -n 0; exit ${{PIPESTATUS[0]}}"
        env = os.environ | {"PYTHONPATH": str(CONF.parent)}
        done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True)
        assert done.returncode == 0
        assert "Error" not in done.stderr


IMPORTED = """
import sys
from scalecap.__main__ import main
watched = {"torch", "transformers", "vllm", "aiohttp", "datasets", "scipy", "hydra", "scalecap.runner"}
try:
    main()
finally:
    print(*sorted(watched & set(sys.modules)), file=sys.stderr)
"""


def test_a_command_imports_only_what_it_needs(typed: Command):
    assert typed("output=run", "data.limit=1") == 0
    imported = {
        ("--version",): "",
        ("--help",): "hydra",
        ("--cfg", "job"): "hydra scalecap.runner",
        ("check=true",): "hydra scalecap.runner",
        ("output=run", "data.limit=1"): "hydra scalecap.runner",  # a finished run
    }
    for words, modules in imported.items():
        done = python("-c", IMPORTED, *words)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, modules), (words, done.stderr)


@pytest.mark.parametrize("override", ["check=true", "check=yes", "++check=True"])
def test_check_loads_no_model_and_writes_nothing(
    typed: Command, opened: list[Any], tmp_path: Path, capsys: Any, override: str
):
    before = set(tmp_path.rglob("*"))
    assert typed(override) == 0
    assert "golden_sentences: verify([sentences])" in capsys.readouterr().out
    assert not opened
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.limt=3", "data.limt: no such key; did you mean 'data.limit'"),
        ("+data.limt=3", "data.limt: no such key; did you mean 'data.limit'"),
        ("sampling.temprature=0", "did you mean 'sampling.temperature'"),
        ("modle=scenes", "modle: no such key; did you mean 'model'"),
        ("model=scnes", "model=scnes: no such option; did you mean 'scenes'"),
        ("engine=vlm", "engine=vlm: no such option; did you mean 'vllm'"),
        ("prompts/verfy=strict", "did you mean 'prompts/verify'"),
        ("prompts/verify=stritc", "prompts/verify=stritc: no such option; did you mean 'strict'"),
        ("evaluate=[scenes,densty]", "evaluate=densty: no such option; did you mean 'density'"),
        ("evaluate=[densty]", "evaluate=densty: no such option; did you mean 'density'"),
        ("prompts.verfy=x", "did you mean 'prompts.verify'"),
        ("pipeline/check=both", "pipeline/check: not available here; it belongs to pipeline=scalecap"),
        ("hydra.foo=1", "hydra.foo: no such key"),
        ("data.limit=many", "data.limit: Value 'many' of type 'str' could not be converted to Integer"),
        ("data.limit=[", "data.limit=["),
        ("~model", "model.vlm.name=… must be given"),
        ("data=jsonl", "data.path"),
        ("data=jsonl data.path=nowhere.jsonl", "nowhere.jsonl"),
        ("pipeline.steps.q_list.max_question=3", "did you mean 'max_questions'"),
        ("pipeline.steps.golden_sentences.prompt=${prompts.verfy}", "did you mean 'prompts.verify'"),
        ("-m output=x seed=1,2", "hydra.sweep.dir"),
    ],
)
def test_a_mistake_gives_one_clear_message(
    typed: Command, opened: list[Any], capsys: Any, words: str, message: str
):
    assert typed(*words.split()) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not opened


def test_a_mistake_in_a_users_file_is_named(typed: Command, tmp_path: Path, capsys: Any):
    mine = tmp_path / "mine" / "data"
    mine.mkdir(parents=True)
    (mine / "cats.yaml").write_text("source: folder\nlimt: 3\n")
    assert typed("--config-dir=mine", "data=cats") == 1
    assert "data.limt: no such key; did you mean 'data.limit'" in capsys.readouterr().err


def test_an_unavailable_model_gives_one_message(typed: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    async def missing(model: Any, engine: Any, beside: Any) -> Scripted:
        raise EngineError("no folder there")

    monkeypatch.setattr(scalecap.engines, "open_engine", missing)
    assert typed("data.limit=1") == 1
    assert "error: no folder there" in capsys.readouterr().err


def test_naming_a_model_selects_the_prompts_for_real_models(typed: Command, capsys: Any):
    assert typed("model.vlm.name=some/model", "check=true") == 0
    shown = capsys.readouterr().out
    assert "vlm: some/model" in shown
    assert "Describe the fine-grained content" in shown


def test_help_lists_what_each_group_offers(typed: Command, capsys: Any):
    assert typed("--help") == 0
    out = capsys.readouterr().out
    assert out.count("\n  python -m scalecap ") + out.count("\n  python -m scalecap\n") == 3
    for group in ("data", "model", "pipeline", "prompts", "sampling", "engine", "cache"):
        assert f"\n  {group} " in out
        assert f"\n{group}: " in out
    assert "\npipeline/check: both, contrast, verify, vote\nprompts: compact, seed\n" in out
    assert "\nhydra" not in out


def test_help_lists_the_users_options_too(typed: Command, tmp_path: Path, capsys: Any):
    mine = tmp_path / "mine" / "sampling"
    mine.mkdir(parents=True)
    (mine / "hot.yaml").write_text("temperature: 2.0\n")
    assert typed("check", "--config-dir", "mine", "-h") == 0
    assert "\nsampling: greedy, hot, seed\n" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "shown"), [("--cfg=job", "golden_sentences:"), ("--info", "model: scenes")])
def test_the_config_can_be_read(typed: Command, capsys: Any, word: str, shown: str):
    assert typed(word) == 0
    assert shown in capsys.readouterr().out


def test_the_command_works_from_any_folder_with_the_users_configs(tmp_path: Path):
    mine = tmp_path / "mine" / "prompts" / "verify"
    mine.mkdir(parents=True)
    (mine / "careful.yaml").write_text("# @package prompts\nverify: 'Sure? {{ text }}'\n")
    done = python("-m", "scalecap", "--config-dir=mine", "prompts/verify=careful", "check=true")
    assert done.returncode == 0, done.stderr
    assert "| Sure? <text>" in done.stdout


@pytest.mark.parametrize("verb", ["report", "compare", "calibrate", "merge", "push", "cache", "test"])
def test_each_verb_has_its_own_help(verb: str, command: Command, capsys: Any):
    assert command(verb, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: scalecap {verb}")


def test_run_and_check_are_verbs_too(typed: Command, tmp_path: Path, opened: list[Any], capsys: Any):
    assert typed("check", "data.limit=1") == 0
    assert "golden_sentences: verify" in capsys.readouterr().out
    assert opened == []
    assert typed("run", "data.limit=1", f"output={tmp_path}/run", "report=false") == 0
    assert typed("compare", f"{tmp_path}/run", "--to", str(tmp_path)) == 0
    assert (tmp_path / "comparison.csv").is_file()
