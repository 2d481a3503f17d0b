"""The scope of a promise: everything that the labelled statements and their P(yes) depend on."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from scalecap.config.effects import determining
from scalecap.config.settings import Settings
from scalecap.data.files import redact_urls
from scalecap.data.sources import json_safe
from scalecap.engines.settings import ModelSettings
from scalecap.interpreter.pipeline import Pipeline, Step
from scalecap.text.templates import Template


def scope(pipeline: Pipeline, step: str, settings: Settings, *, given: bool = False) -> dict[str, Any]:
    """The settings that determine a step's statements and their P(yes), as JSON.

    They are those of the step (without its threshold), of all steps upstream of it, and of their models, and
    the code of external stages. For `given` statements, which come from the data, only the step itself
    matters. A model in a local folder is identified by `identities` once it is loaded, not by its path.
    """
    steps, models, code = upstream(pipeline, step, given), settings.by_role(), pipeline.source_digests
    described = {each.name: _settings(each, own=each.name == step) for each in steps}
    if given:
        for key in ("texts", "sampling"):  # sampling does not affect single-token answers
            del described[step][key]
    return {
        "steps": described,
        "models": {role: _model(models[role].model) for role in _roles(steps)},
        **({} if given else {"sampling": asdict(settings.sampling), "budget": settings.pipeline.budget}),
        "min_mass": settings.min_mass,
        "code": {each.stage.name: code[each.stage.name] for each in steps if each.stage.name in code},
    }


def identities(
    pipeline: Pipeline, step: str, models: Mapping[str, str], *, given: bool = False
) -> dict[str, str]:
    """By role, the identities of the models used by the step and upstream of it.

    Args:
        models: by role, the identity of each loaded model.
        given: whether only the step itself matters, as in `scope`.
    """
    return {role: models.get(role, "") for role in _roles(upstream(pipeline, step, given))}


def describe_data(settings: Settings) -> str:
    """A description of the images' source."""
    return redact_urls(f"data={settings.data.source} {settings.data.path or ''}".rstrip())


def upstream(pipeline: Pipeline, step: str, given: bool) -> list[Step]:
    """The steps that the step depends on, itself last; only itself for given statements."""
    if given:
        return [each for each in pipeline.steps if each.name == step]
    wanted: set[str] = set()
    waiting = [step]
    by_name = {each.name: each for each in pipeline.steps}
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            reads = by_name[name].reads
            waiting += [pipeline.writers[column] for column in reads if column in pipeline.writers]
    return [each for each in pipeline.steps if each.name in wanted]


def _roles(steps: list[Step]) -> list[str]:
    return sorted({each.role for each in steps if each.role})


def _settings(step: Step, own: bool) -> dict[str, Any]:
    kept = {name: _plain(value) for name, value in step.settings.items() if not (own and name == "threshold")}
    when = {"when": step.when.source, "otherwise": step.otherwise} if step.when else {}
    limit = {"limit": step.limit.source} if step.limit else {}
    loop = {"adds_to": step.adds_to, "rounds": step.rounds} if step.adds_to else {}
    return {"stage": step.stage.name, **json_safe(dict(step.columns)), **kept, **when, **limit, **loop}


def _plain(value: Any) -> Any:
    if isinstance(value, Template):
        return value.source
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return json_safe(asdict(value))
    return json_safe(value)


def _model(model: ModelSettings) -> dict[str, Any]:
    known = determining(asdict(model), ModelSettings)
    del known["engine"]  # part of the model's identity
    if Path(model.name).expanduser().is_dir():
        known["name"] = "a local folder"
    return known
