"""Configurations composed from Python values."""

from pathlib import Path
from typing import Any

import pytest

from scalecap.config.compose import compose
from scalecap.config.settings import SettingsError, from_config


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
    ],
)
def test_invalid_values_are_named(values: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        compose([], values)


@pytest.mark.parametrize(
    ("overrides", "values"),
    [(["model.vlm.name=some/model"], {}), ([], {"model": {"vlm": {"name": "some/model"}}})],
)
def test_naming_a_model_leaves_the_embedded_ones_prompts(overrides: list[str], values: dict[str, Any]):
    settings = from_config(compose([*overrides, "output=x"], values)[0])
    assert settings == from_config(compose(["model=own", "model.vlm.name=some/model", "output=x"])[0])
    assert settings.model.vlm.dtype == "auto"


def test_a_folder_of_own_files_is_searched(tmp_path: Path):
    (tmp_path / "prompts" / "verify").mkdir(parents=True)
    (tmp_path / "prompts" / "verify" / "mine.yaml").write_text(
        "# @package prompts\nverify: 'Mine: {{ text }}'\n"
    )
    config, _ = compose(["prompts/verify=mine", "output=x"], config_dir=tmp_path)
    assert config.prompts.verify == "Mine: {{ text }}"
    with pytest.raises(SettingsError, match="is not a folder"):
        compose(config_dir=tmp_path / "absent")
