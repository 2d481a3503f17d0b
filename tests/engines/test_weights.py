import errno
import json
import shutil
from pathlib import Path

import pytest

from scalecap.engines.settings import ModelSettings
from scalecap.engines.weights import ModelError, find_weights, fix_rope_scaling, load_errors, weights_size


def test_a_renamed_folder_is_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "модель 3"
    shutil.copytree(tiny_model, renamed)
    one, other = (
        find_weights(ModelSettings(name=str(tiny_model))),
        find_weights(ModelSettings(name=str(renamed))),
    )
    assert one.content == other.content
    assert one.content.startswith("sha256:")


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_different_content_is_a_different_model(tiny_model: Path, tmp_path: Path, file: str) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    with (changed / file).open("ab") as stream:
        stream.write(b"\n")
    assert (
        find_weights(ModelSettings(name=str(changed))).content
        != find_weights(ModelSettings(name=str(tiny_model))).content
    )


def test_a_chat_template_may_stand_beside_the_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    assert find_weights(ModelSettings(name=str(folder))).chat_template() == (
        folder / "chat_template.jinja"
    ).read_text("utf-8")
    (folder / "chat_template.jinja").unlink()
    assert find_weights(ModelSettings(name=str(folder))).chat_template() is None
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert find_weights(ModelSettings(name=str(folder))).chat_template() == "{{ messages }}"


def test_the_size_is_that_of_the_weights_alone(tiny_model: Path) -> None:
    assert (
        weights_size(ModelSettings(name=str(tiny_model))) == (tiny_model / "model.safetensors").stat().st_size
    )


@pytest.mark.parametrize(
    ("rope", "fixed"),
    [
        ({"type": "mrope", "mrope_section": [2]}, {"rope_type": "default", "mrope_section": [2]}),
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_type": "yarn", "type": "yarn"}, {"rope_type": "yarn", "type": "yarn"}),
        (None, None),
    ],
)
def test_rope_scaling_is_fixed_at_any_depth(rope: object, fixed: object) -> None:
    assert fix_rope_scaling({"rope_scaling": rope, "text_config": {"rope_scaling": rope, "type": "x"}}) == {
        "rope_scaling": fixed,
        "text_config": {"rope_scaling": fixed, "type": "x"},
    }


def test_the_file_is_not_changed(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = find_weights(ModelSettings(name=str(folder)))
    assert weights.config_overrides == {
        "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]}
    }
    assert json.loads((folder / "config.json").read_text()) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no folder ./nowhere"),
        ("/a/b/c", "no folder /a/b/c"),
        ("a b c", "no such model on the hub"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_weights(ModelSettings(name=name))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_weights(ModelSettings(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        find_weights(ModelSettings(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        find_weights(ModelSettings(name=str(tmp_path)))


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"can't be reached.*hf download some/model"):
        find_weights(ModelSettings(name="some/model"))


class OutOfMemoryError(RuntimeError):
    """torch's own, by its name."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4"),
            "unset LD_LIBRARY_PATH",
        ),
        (OutOfMemoryError("CUDA"), "does not fit into the GPU's memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "does not fit into the GPU's memory"),
        (ValueError("odd"), "can't be loaded: ValueError: odd"),
    ],
)
def test_failures_become_one_message(error: Exception, message: str) -> None:
    with pytest.raises(ModelError, match=message), load_errors(ModelSettings(name="m")):
        raise error


def test_a_missing_library_is_the_callers_to_name() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing_like_it"), load_errors(ModelSettings(name="m")):
        import nothing_like_it  # noqa: F401
