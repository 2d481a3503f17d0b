"""A model role with an engine of its own, beside what runs the others."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from runs import Command, Compose, Rows
from server import Server, completion, storyteller

from scalecap.config.effects import config_differences
from scalecap.config.settings import SettingsError
from scalecap.engines.settings import EngineSettings

OPENAI = ("model=own", "model.vlm.name=m", "engine=openai", "engine.base_url=http://a/v1")
TUNED = ("engine.identity=a", "engine.logprobs=true", "engine.extra_body.top_k=3", "engine.timeout=5")


@pytest.mark.parametrize(
    ("words", "own", "expected"),
    [
        # As the run's engine, except for what is given.
        (("engine=vllm", "engine.args.seed=1"), "{concurrency: 4}", {"name": "vllm", "args": {"seed": 1}}),
        ((*OPENAI, *TUNED), "{timeout: 9}", {"identity": "a", "logprobs": True, "timeout": 9.0}),
        # At another address, what describes the engine is reset and how it is used is kept.
        (
            (*OPENAI, *TUNED),
            "{base_url: http://b/v1}",
            {"name": "openai", "identity": None, "logprobs": None, "extra_body": {}, "timeout": 5.0},
        ),
        (("engine=vllm", "engine.args.seed=1"), "{name: openai, base_url: http://b/v1}", {"args": {}}),
        (OPENAI, "{name: transformers}", {"base_url": None, "name": "transformers"}),
    ],
)
def test_settings_not_given_come_from_the_runs_engine(
    compose: Compose, words: Any, own: str, expected: dict[str, Any]
):
    settings = compose(*words, f"model.judge.engine={own}")
    engine = settings.by_role()["judge"].engine
    assert {name: getattr(engine, name) for name in expected} == expected
    assert settings.by_role()["vlm"].engine == settings.engine
    assert all(not model.engine for model, _ in settings.by_role().values())


def test_a_key_may_be_given_alone_or_as_the_option_of_a_group(compose: Compose):
    url = "model.judge.engine.base_url=http://b/v1"
    for words in ((url, "model.judge.engine.name=openai"), ("+engine@model.judge.engine=openai", url)):
        engine = compose(*words).by_role()["judge"].engine
        assert engine == replace(EngineSettings(), name="openai", base_url="http://b/v1")


def test_a_role_with_nothing_of_its_own_has_the_vlms_engine(compose: Compose):
    roles = compose("model.vlm.engine={name: openai, base_url: http://b/v1}").by_role()
    assert roles["vlm"] == roles["llm"] == roles["judge"]
    assert roles["judge"].engine.name == "openai"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{bas_url: x}", r"model\.judge\.engine\.bas_url: no such key; did you mean 'base_url'"),
        ("{name: opena}", r"model\.judge\.engine\.name=opena: no such engine; did you mean 'openai'"),
        ("{name: openai}", r"model\.judge\.engine\.name=openai needs model\.judge\.engine\.base_url="),
        ("{timeout: 0}", r"model\.judge\.engine\.timeout=0\.0: must be above 0"),
        ("{batch_size: 0}", r"model\.judge\.engine\.batch_size=0: must be 1 or more"),
        ("{extra_body: {n: 2}}", r"model\.judge\.engine\.extra_body\.n: set by scalecap itself"),
    ],
)
def test_an_invalid_value_is_named_by_its_full_key(compose: Compose, own: str, message: str):
    with pytest.raises(SettingsError, match=message):
        compose(f"model.judge.engine={own}")


def test_a_value_of_the_wrong_type_is_named_by_its_full_key(typed: Command, capsys: Any):
    assert typed("model.judge.engine.timeout=soon", "check=true") == 1
    assert "model.judge.engine.timeout: Value 'soon'" in capsys.readouterr().err


def test_a_run_resumes_though_a_roles_server_moved_but_not_with_another_engine(compose: Compose):
    here, moved, other = (
        asdict(compose(f"model.judge.engine={{name: openai, base_url: http://{host}/v1, logprobs: {given}}}"))
        for host, given in (("a", "true"), ("b", "true"), ("b", "false"))
    )
    assert config_differences(here, moved) == ""
    assert config_differences(here, other) == "model.judge.engine.logprobs: was True, is False"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    both = [Server(storyteller), Server(lambda _: (200, completion("Yes", top={"Yes": 0.75, "No": 0.25})))]
    for server in both:
        server.seconds = 0.0
    yield both
    for server in both:
        server.stop()


def test_the_judge_uses_its_own_server(command: Command, servers: list[Server], rows: Rows, capsys: Any):
    one, two = servers
    two.models = (200, {"object": "list", "data": [{"id": "large", "object": "model"}]})
    words = [
        *(
            "model=own",
            "model.vlm.name=m",
            "engine=openai",
            f"engine.base_url={one.url}",
            "data=jsonl",
            rows(2),
        ),
        *("model.judge.name=large", f"model.judge.engine={{base_url: {two.url}, concurrency: 1}}"),
        *("evaluate=grounding", "output=out"),
    ]
    assert command(*words, "check=true") == 0
    shown = capsys.readouterr().out
    assert f"vlm: m\nllm: m\njudge: large, engine=openai at {two.url}\n" in shown
    assert command(*words) == 0
    assert {request["model"] for request in one.requests} == {"m"}
    assert {request["model"] for request in two.requests} == {"large"}
    assert two.max_in_flight == 1
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["models"] == {
        "vlm": f"openai m at={one.url}",
        "llm": f"openai m at={one.url}",
        "judge": f"openai large at={two.url}",
    }
    assert summary["metrics"]["grounding.final_caption.p_yes"]["mean"] == pytest.approx(0.75)


@pytest.mark.slow
def test_a_model_in_this_process_beside_a_server(command: Command, servers: list[Server]):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    judge = f"model.judge.engine={{name: openai, base_url: {servers[1].url}}}"
    words = ("engine=transformers", "data.limit=2", "evaluate=grounding", "model.judge.name=m", judge)
    assert command(*words, "output=out") == 0
    assert servers[1].requests
    models = json.loads(Path("out/summary.json").read_text())["models"]
    assert models["vlm"].startswith("transformers sha256:")
    assert models["judge"] == f"openai m at={servers[1].url}"
