from importlib.metadata import EntryPoint
from typing import Any

import pytest

from scalecap.stages import Columns, Image, ModelClient, find, names, registry, stage

pytestmark = pytest.mark.usefixtures("own_stages")


def test_every_stage_of_the_seed_is_there():
    expected = {"fuse", "generate", "parse_questions", "split_sentences", "verify"}
    assert expected <= set(names())


def test_a_function_is_read_from_its_signature():
    @stage(name="t/shout")
    def shout(text: str, words: list[str], more: list[str] | None = None, *, times: int = 2) -> float:
        """Loud.

        Very.
        """
        return 1.0

    found = find("t/shout")
    assert found is not None
    assert {name: p.kind for name, p in found.columns.items()} == {
        "text": "text",
        "words": "texts",
        "more": "texts",
    }
    assert [p.required for p in found.columns.values()] == [True, True, False]
    assert list(found.settings) == ["times"]
    assert (found.kinds, found.uses_model, found.summary) == (("number",), False, "Loud.")


@pytest.mark.parametrize(("module", "name"), [("__main__", "louder"), ("mine.steps", "mine/louder")])
def test_a_cell_that_runs_again_replaces_its_own_stage(module: str, name: str):
    cell = """
@stage
def louder(text: str, *, {setting}: int = 2) -> str:
    return text
"""
    place = {"__name__": module, "stage": stage}
    for setting in ("times", "more"):
        exec(cell.format(setting=setting), place)
        found = find(name)
        assert found is not None
        assert list(found.settings) == [setting]
    with pytest.raises(ValueError, match="is taken by"):
        exec(cell.format(setting="x"), {"__name__": f"{module}.other", "stage": stage})


def test_a_class_is_read_from_its_signatures():
    @stage(side=["notes", "sizes"])
    class LongName:
        def __init__(self, *, loud: bool) -> None: ...

        async def __call__(
            self, client: ModelClient, *, image: Image, given: Columns, rest: Any
        ) -> tuple[str, list[str], dict[str, int]]:
            return "", [], {}

    found = find(f"{__name__.partition('.')[0]}/long_name")
    assert found is not None
    assert {name: p.kind for name, p in found.columns.items()} == {
        "image": "image",
        "given": "columns",
        "rest": "any",
    }
    assert found.settings["loud"].required
    assert (found.kinds, found.side, found.uses_model) == (("text", "texts", "any"), ("notes", "sizes"), True)


def test_a_class_without_settings():
    @stage(name="t/bare")
    class Bare:
        async def __call__(self, client: ModelClient, *, text: str) -> str:
            return text

    found = find("t/bare")
    assert found is not None
    assert not found.settings


def test_a_taken_name_is_refused():
    def generate(text: str) -> str:
        return text

    generate.__module__ = "scalecap.stages.other"
    with pytest.raises(ValueError, match=r"'generate' is taken by scalecap\.stages\.generate"):
        stage(generate)


def _no_type(text, *, n: int = 1) -> str:
    return ""


def _stars(*texts: str) -> str:
    return ""


def _one_value(text: str) -> str:
    return ""


class _Positional:
    def __init__(self, prompt: str) -> None: ...

    async def __call__(self, client: ModelClient, *, text: str) -> str:
        return ""


@pytest.mark.parametrize(
    ("unit", "side", "message"),
    [
        (_no_type, (), "text needs a type"),
        (_stars, (), r"\*texts: str needs a type, and can't be \*"),
        (_one_value, ("scores",), r"side columns \['scores'\] it returns a tuple of 2"),
        (_Positional, (), r"stand after `\*` in __init__"),
    ],
)
def test_a_bad_signature_is_refused(unit, side, message):
    with pytest.raises(TypeError, match=message):
        stage(name="t/bad", side=side)(unit)
    assert find("t/bad") is None


def test_entry_points_are_loaded_only_for_an_unknown_name_of_their_package(monkeypatch):
    loaded = []

    class Entry(EntryPoint):
        def load(self):
            loaded.append(self.value)

            @stage(name="outer/late")
            def late(text: str) -> str:
                return text

    entries = [Entry("x", "outer.stages", "scalecap.stages"), Entry("y", "another", "scalecap.stages")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    assert find("generate") is not None
    assert find("nothing") is None
    assert loaded == []
    assert find("outer/late") is not None
    assert loaded == ["outer.stages"]
