"""What labelled statements depend on: a promise made from them holds where all of it is the same."""

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
    """The settings that make the step's statements and their P(yes), for JSON.

    They are those of the step, its own threshold left out, of all steps that it reads from, directly or
    not, and of the models that these ask; an outside stage's code counts too. Of `given` statements, which
    the data had, the step alone counts, wherever its texts are from. A model in a local folder is not known
    by the folder's name, but by `identities`, once it is loaded.
    """
    steps, models, code = upstream(pipeline, step, given), settings.by_role(), pipeline.code
    described = {each.name: _settings(each, own=each.name == step) for each in steps}
    if given:
        for key in ("texts", "sampling"):  # which draws texts, and no answer of one token
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
    """By role, what answered or will answer the step's requests and those of the steps that it reads from.

    Args:
        models: by role, the identity of each loaded model.
        given: the step alone counts, as in `scope`.
    """
    return {role: models.get(role, "") for role in _roles(upstream(pipeline, step, given))}


def differences(labelled: Any, now: Any, name: str = "") -> list[str]:
    """What differs, for reading, by dotted names."""
    if isinstance(labelled, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*labelled, *now])
        below = (differences(labelled.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return [each for every in below for each in every]
    return [] if labelled == now else [f"{name}: was {labelled}, is {now}"]


def pictures(settings: Settings) -> str:
    """Where the pictures come from, for reading."""
    return redact_urls(f"data={settings.data.source} {settings.data.path or ''}".rstrip())


def upstream(pipeline: Pipeline, step: str, given: bool) -> list[Step]:
    """The step after all that it reads from, in the pipeline's order; of given statements the step alone."""
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
    return {"stage": step.stage.name, **json_safe(dict(step.columns)), **kept, **when}


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
    del known["engine"]  # what runs the model is part of its identity
    if Path(model.name).expanduser().is_dir():
        known["name"] = "a local folder"
    return known
