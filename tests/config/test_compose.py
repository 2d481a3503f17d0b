"""Configurations composed from Python values."""

from pathlib import Path
from typing import Any

import pytest

from scalecap.config.compose import compose, from_config
from scalecap.config.settings import SettingsError


def test_values_are_what_the_command_line_would_take():
    config, words = compose(
        ["sampling.temperature=0.2"],
        {
            "pipeline": "scalecap",
            "also": ["closing_check"],
            "cache": False,
            "prompts": {"verify": 'Is "{{ text }}" so?'},
            "engine": {"args": {"max_num_seqs": 8}},
            "output": Path("x"),
            "max_failures": None,
        },
    )
    settings = from_config(config)
    assert settings.sampling.temperature == 0.2
    assert "checked_caption" in settings.pipeline.steps
    assert not settings.cache.enabled
    assert settings.prompts["verify"] == 'Is "{{ text }}" so?'
    assert settings.engine.args == {"max_num_seqs": 8}
    assert (settings.output, settings.max_failures) == ("x", None)
    assert from_config(compose(words)[0]) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pipelin": "seed"}, "pipelin: no such key"),
        ({"pipeline": "sed"}, "pipeline=sed: no such option"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature: no such key"),
        ({"seed": "many"}, "seed: Value 'many'"),
        ({"data": {"context": "alt"}}, "data.context: expected a list"),
        ({"output": None}, "output: must not be null"),
        ({"prompts": {"verify": "${prompts.verfy}"}}, "did you mean 'prompts.verify'"),
        ({"model": {"llm": {"engine": {"retries": "many"}}}}, "model.llm.engine.retries: Value 'many'"),
    ],
)
def test_invalid_values_are_named(values: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        from_config(compose([], values)[0])


@pytest.mark.parametrize(
    ("overrides", "values"),
    [(["model.vlm.name=some/model"], {}), ([], {"model": {"vlm": {"name": "some/model"}}})],
)
def test_naming_a_model_leaves_the_embedded_ones_prompts(overrides: list[str], values: dict[str, Any]):
    settings = from_config(compose([*overrides, "output=x"], values)[0])
    assert settings == from_config(compose(["model=own", "model.vlm.name=some/model", "output=x"])[0])
    assert settings.model.vlm.dtype == "auto"


def test_a_folder_of_own_files_is_searched(tmp_path: Path):
    own = tmp_path / "my files (2)"
    (own / "prompts" / "verify").mkdir(parents=True)
    (own / "prompts" / "verify" / "mine.yaml").write_text("# @package prompts\nverify: 'Mine: {{ text }}'\n")
    config, _ = compose(["prompts/verify=mine", "output=x"], config_dirs=[own])
    assert config.prompts.verify == "Mine: {{ text }}"
    with pytest.raises(SettingsError, match=r"does not exist: .*absent"):
        compose(config_dirs=[tmp_path / "absent"])
