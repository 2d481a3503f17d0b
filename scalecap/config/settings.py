"""Every setting of a run, typed: the schema behind `conf/` and the command line.

The text under a field says its unit and effect. Values come from YAML; a key that is not here is refused.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from scalecap.config.exports import WriteSettings
from scalecap.config.labelled import LabelsSettings
from scalecap.engines.base import Sampling
from scalecap.engines.settings import (
    AFFECTS_COST,
    AFFECTS_NOTHING,
    EngineSettings,
    ModelSettings,
    ModelsSettings,
    RoleSettings,
    engine_problems,
    own_engine,
)
from scalecap.text.suggestions import did_you_mean

RUNNERS = ("local", "ray")
_OWN_VARIABLES = ("messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "tools")
"""Arguments of `apply_chat_template` that are no variables to set."""
_PACKAGE = Path(__file__).resolve().parent.parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The YAML files: as the wheel carries them, or the checkout's."""
AFFECTS_STEPS = {"affects": "steps"}
"""Of one that stands in the settings of the steps that use it, and counts there."""


@dataclass
class DataSettings:
    """Where rows come from."""

    source: str = MISSING
    """`jsonl`, `folder`, `hub`, `webdataset`, `parquet` or `scenes`."""
    path: str | None = None
    """File, folder, pattern, URL or hub name, as the source needs it."""
    context: list[str] = field(default_factory=list, metadata=AFFECTS_STEPS)
    """Columns of texts, or of lists of texts, that captions are shown with the picture (also=context)."""
    image: str = "image"
    """Column that holds the picture. With data=webdataset any name, or the extension that chooses among
    several pictures of a sample."""
    id: str | None = None
    """Column of texts or whole numbers that are the rows' ids (`row_id` in the output); a row that repeats
    one fails. None is what the source has: the path with data=folder, `shard#key` with data=webdataset,
    `file#row` with data=parquet, else the row's index."""
    limit: int | None = field(default=None, metadata=AFFECTS_COST)
    """Takes the first so many rows; None takes all."""
    shard: str | None = None
    """`3/16` takes every sixteenth row from the fourth on; `0/16` to `15/16` together are all."""
    split: str = "train"
    """Split of a hub data set."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    streaming: bool = field(default=False, metadata=AFFECTS_COST)
    """Reads a hub data set while it downloads."""
    relative_to: str = "file"
    """Picture paths start at the JSONL's own folder (`file`) or at the working folder (`cwd`)."""
    allow_urls: bool = field(default=False, metadata=AFFECTS_COST)
    """Lets pictures be fetched from URLs in the data."""
    allow_outside: bool = field(default=False, metadata=AFFECTS_COST)
    """Lets `write.image=bytes` copy pictures from anywhere on this disk that a row names. Without it, only
    those below the data's own folder are copied (rows of other pictures are captioned all the same)."""
    count: int | None = None
    """Pictures to generate (data=scenes); None is the fixed sample in the package."""
    seed: int = 0
    """Seed of generated pictures (data=scenes)."""


@dataclass
class PipelineSettings:
    """The steps, by the column each writes."""

    steps: dict[str, Any] = field(default_factory=dict)
    """Free-form here: `scalecap.interpreter.binding` binds each step to its stage, and says what does not
    fit."""
    budget: int | None = None
    """Most requests an image takes, those answered from the cache included; None is no limit. Steps then
    ask one after the other, and what is left unasked is marked and counted. A second draw of a faulty reply
    counts, and is always made; metrics do not count."""
    verified: dict[str, str] = field(
        default_factory=lambda: {"sentences": "golden_sentences", "details": "final_details"},
        metadata=AFFECTS_STEPS,
    )
    """Columns of what was found true, by the variables of the prompts of `also=` that write from them."""
    imports: list[str] = field(default_factory=list)
    """Modules to import first, which register stages of their own."""
    cases: list[Any] = field(default_factory=list, metadata=AFFECTS_NOTHING)
    """Rows with scripted replies and the columns that they should give: `scalecap test` runs them."""


@dataclass
class EvaluateSettings:
    """What the metrics of `evaluate=` look at."""

    caption: Any = "final_caption"
    """The column judged, or a list of them, e.g. `[final_caption,sonnet]`; null with `pipeline=none`."""
    before: list[str] = field(default_factory=lambda: ["init_caption", "golden_sentences", "final_details"])
    """Columns of earlier steps that metrics without a model tell beside it."""
    initial: str | None = "init_caption"
    """The caption whose words are not new."""
    words: int | None = None
    """Cuts every caption judged at so many words, so that captions of equal length are compared."""


@dataclass
class CacheSettings:
    """Replies kept between runs: same request to the same model, same reply, no work."""

    enabled: bool = True
    dir: str = "~/.cache/scalecap/replies"
    """Folder of the cache; delete it to forget."""


@dataclass
class RunnerSettings:
    """Where rows are taken through the pipeline."""

    name: str = "local"
    """`local` or `ray`."""
    actors: int = 1
    """Processes on the cluster, each with an engine of its own (runner=ray)."""
    gpus_per_actor: float | None = None
    """GPUs of each; None is one where the cluster has any. Two with `engine.args.tensor_parallel_size=2`."""
    address: str | None = None
    """Of the cluster's head: `auto` on one of its machines, `ray://HOST:10001` from outside; None starts Ray
    on this machine alone."""


@dataclass
class Settings:
    """One run."""

    model: ModelsSettings = field(default_factory=ModelsSettings)
    data: DataSettings = field(default_factory=DataSettings)
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    prompts: dict[str, str] = field(default_factory=dict, metadata=AFFECTS_STEPS)
    """Jinja text of each role."""
    sampling: Sampling = field(default_factory=Sampling)
    """How free text is drawn where a step does not say otherwise."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    cache: CacheSettings = field(default_factory=CacheSettings, metadata=AFFECTS_NOTHING)
    runner: RunnerSettings = field(default_factory=RunnerSettings, metadata=AFFECTS_COST)
    write: WriteSettings = field(default_factory=WriteSettings, metadata=AFFECTS_NOTHING)
    labels: LabelsSettings = field(default_factory=LabelsSettings)
    calibration: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """`calibration.json` of a labelled run (`scalecap calibrate`), which sets the thresholds of the
    checks that it knows so that they keep what `wrong` promises."""
    wrong: Any = None
    """The promise: at most this share of what a check keeps is wrong, e.g. 0.05 for all checks of the
    calibration, or `{golden_sentences: 0.05}` for some."""
    seed: int = 0
    """Seed of every draw, together with the request's content."""
    output: str = field(default=MISSING, metadata=AFFECTS_NOTHING)
    """Folder of this run; a finished row in it is not computed again."""
    resume: str = field(default="same", metadata=AFFECTS_NOTHING)
    """`same` goes on in a folder only with the config it was begun with; `force` with another too."""
    check: bool = field(default=False, metadata=AFFECTS_NOTHING)
    """Only checks the config and prints the plan; loads no model."""
    progress: bool = field(default=True, metadata=AFFECTS_NOTHING)
    """Shows a live bar on a terminal; lines in the log are written either way."""
    objective: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Metric whose mean a sweeper such as optuna makes as high as it can, and that a comparison marks the
    best of; `-metric` where lower is better."""
    report: bool | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Writes `report.html` at the end; None does for a single run of at most 200 rows."""
    max_failures: str | None = field(default="100%", metadata=AFFECTS_NOTHING)
    """Stops the run when so many rows failed: a count, or a share of the rows that ended (looked at from
    the 20th on); null never stops. What is done stays, and the same command goes on."""
    min_mass: float = 0.1
    """A check counts as unanswered where its options (yes and no, say) have less probability than this
    together: the model would say something else. When most checks of a step are unanswered, after 50 of
    them, the run stops and says why. 0 takes every answer, and never stops."""
    max_requests: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run when so many requests were computed; those answered from the cache do not count. This and
    the next two hold for one run: each time it goes on, it has as much again."""
    max_tokens: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run when so many tokens were computed, of prompts and replies."""
    max_cost: float | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run when its tokens have cost so much, in the currency of `engine.price`."""
    edits: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """File of edited columns, by row id (`scalecap/edits.py`): their rows are done again from there."""
    preview: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Takes so many rows, and estimates what all will take; the same command without it goes on."""
    rows_in_flight: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Rows worked on at once (by each actor, with runner=ray); None keeps the engine busy and the rows'
    pictures in its KV cache."""

    def by_role(self, used: Collection[str] | None = None) -> dict[str, RoleSettings]:
        """The model of each role and what runs it; a role with nothing of its own is the `vlm`.

        Args:
            used: the roles that are wanted; None is all.
        """
        models = {role: model for role, model in vars(self.model).items() if used is None or role in used}
        untouched = ModelSettings(name=self.model.vlm.name)
        found = {}
        for role, model in models.items():
            taken = self.model.vlm if model == untouched else model
            found[role] = RoleSettings(replace(taken, engine={}), own_engine(self.engine, taken.engine))
        return found

    def problems(self) -> list[str]:
        """Values that have the right type and make no sense, one line each."""
        at_least = {
            "data.limit": (self.data.limit, 1),
            "pipeline.budget": (self.pipeline.budget, 1),
            "evaluate.words": (self.evaluate.words, 1),
            "data.count": (self.data.count, 1),
            "rows_in_flight": (self.rows_in_flight, 1),
            "max_requests": (self.max_requests, 1),
            "max_tokens": (self.max_tokens, 1),
            "max_cost": (self.max_cost, 0),
            "preview": (self.preview, 1),
            "runner.actors": (self.runner.actors, 1),
            "runner.gpus_per_actor": (self.runner.gpus_per_actor, 0),
        }
        found = [
            f"{key}={value}: must be {least} or more"
            for key, (value, least) in at_least.items()
            if value is not None and value < least
        ]
        found += [f"sampling.{problem}" for problem in self.sampling.problems()]
        most = re.fullmatch(r"(\d+|\d+(?:\.\d+)?%)", self.max_failures or "100%")
        if most is None or not 0 < float(most[1].rstrip("%")) <= (100 if "%" in most[1] else math.inf):
            found.append(
                f"max_failures={self.max_failures}: must be a count from 1 on, a share such as 5%, or null"
            )
        if not 0 <= self.min_mass <= 1:
            found.append(f"min_mass={self.min_mass}: must be a probability, from 0 to 1")
        if self.resume not in ("same", "force"):
            found.append(f"resume={self.resume}: must be same or force")
        if self.data.relative_to not in ("file", "cwd"):
            found.append(f"data.relative_to={self.data.relative_to}: must be file or cwd")
        found += [f"write.{problem}" for problem in self.write.problems()]
        found += self.labels.problems(self.pipeline.steps)
        if self.runner.name not in RUNNERS:
            found.append(
                f"runner.name={self.runner.name}: no such runner{did_you_mean(self.runner.name, RUNNERS)}"
            )
        found += engine_problems("engine", self.engine)
        for role, model in vars(self.model).items():
            found += [
                f"model.{role}.chat_template_kwargs.{key}: set by scalecap itself"
                for key in model.chat_template_kwargs
                if key in _OWN_VARIABLES
            ]
            if model.engine:
                found += engine_problems(f"model.{role}.engine", own_engine(self.engine, model.engine))
        unpriced = [role for role, (_, each) in self.by_role().items() if None in each.price.needed]
        if self.max_cost is not None and unpriced:
            found.append(
                f"max_cost={self.max_cost} needs engine.price={{prompt: …, generated: …}} of the engine of"
                f" {' and '.join(unpriced)}"
            )
        judged = [step for step in self.pipeline.steps.values() if isinstance(step, dict)]
        if self.evaluate.caption is None and any(step.get("captions", "") is None for step in judged):
            found.append("evaluate.caption=COLUMN must say which captions are judged")
        if (self.calibration is None) != (self.wrong is None):
            found.append(
                "calibration=FILE and wrong=SHARE go together: the one keeps what the other promises"
            )
        wrong = self.wrong if isinstance(self.wrong, dict) else {"": self.wrong}
        found += [
            f"wrong={f'{{{step}: {value}}}' if step else value}: must be above 0 and below 1"
            for step, value in wrong.items()
            if value is not None and not (type(value) is float and 0 < value < 1)
        ]
        return found


class SettingsError(Exception):
    """Values make no sense; the message names their keys."""


def schema() -> DictConfig:
    """`Settings` as the typed config that YAML and command line are merged into."""
    node = OmegaConf.structured(Settings)
    assert isinstance(node, DictConfig)
    OmegaConf.set_readonly(node.sampling, False)
    OmegaConf.set_struct(node.pipeline.steps, False)
    OmegaConf.set_struct(node.engine.args, False)
    OmegaConf.set_struct(node.engine.extra_body, False)
    for model in node.model.values():
        OmegaConf.set_struct(model.chat_template_kwargs, False)
        OmegaConf.set_struct(model.engine, False)
    return node


def from_config(config: DictConfig) -> Settings:
    """The settings in a composed config, every interpolation resolved.

    Raises SettingsError, or OmegaConfBaseException for a key, type or interpolation that does not fit.
    """
    # `+key=value` adds keys to a composed config unseen, so it is held against the schema once more.
    typed = OmegaConf.merge(schema(), OmegaConf.create(OmegaConf.to_container(config)))
    settings = OmegaConf.to_object(typed)
    assert isinstance(settings, Settings)
    for role, model in vars(settings.model).items():
        model.engine = _typed_engine(f"model.{role}.engine", model.engine)
    if problems := settings.problems():
        raise SettingsError("\n  ".join(problems))
    settings.pipeline.steps = settings.labels.restrict_steps(settings.pipeline.steps)
    return settings


def _typed_engine(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of an engine's settings under `key`, each with its type. Raises as `from_config`."""
    known = [each.name for each in fields(EngineSettings)]
    for name in given:
        if name not in known:
            raise SettingsError(f"{key}.{name}: no such key{did_you_mean(name, known)}")
    # At its place in the config, so that an error names the whole key.
    node = OmegaConf.create({})
    OmegaConf.update(node, key, OmegaConf.structured(EngineSettings))
    OmegaConf.update(node, key, dict(given))
    typed: Any = OmegaConf.to_container(OmegaConf.select(node, key))
    return {name: typed[name] for name in given}


ConfigStore.instance().store(name="schema", node=schema())
