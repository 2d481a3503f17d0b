"""All settings of a run, typed: the schema behind `conf/` and the command line.

The docstring below a field gives its unit and effect. Unknown keys are rejected.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from operator import attrgetter
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
"""Arguments of `apply_chat_template` that are not template variables."""
_COUNTS = (
    *("data.limit", "data.count", "pipeline.budget", "evaluate.words", "runner.actors"),
    *("rows_in_flight", "max_requests", "max_tokens", "preview"),
)
"""Settings that must be 1 or more, or null."""
_PACKAGE = Path(__file__).resolve().parent.parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The YAML files, of the wheel or of the checkout."""
AFFECTS_STEPS = {"affects": "steps"}
"""Metadata of a setting that is part of the settings of the steps that use it, and is compared there."""


@dataclass
class DataSettings:
    """Where rows come from."""

    source: str = MISSING
    """`jsonl`, `folder`, `hub`, `webdataset`, `parquet`, `scenes`, or `package/name` of another
    package."""
    path: str | None = None
    """File, folder, glob pattern, URL or hub name, depending on the source."""
    context: list[str] = field(default_factory=list, metadata=AFFECTS_STEPS)
    """Columns of texts, or lists of texts, that the captioning prompt includes (also=context)."""
    image: str = "image"
    """Column of the image. With data=webdataset: any name, or the extension that chooses one of several
    images in a sample."""
    id: str | None = None
    """Column of unique strings or integers that identify the rows (`row_id` in the output); a row that
    repeats one fails. None is the path with data=folder, `shard#key` with data=webdataset, `file#row` with
    data=parquet, else the index of the row."""
    limit: int | None = field(default=None, metadata=AFFECTS_COST)
    """Maximum number of rows; None takes all."""
    shard: str | None = None
    """`i/n` takes the rows i, i+n, i+2n, …; the shards `0/16` to `15/16` together are all rows."""
    split: str = "train"
    """Split of a hub dataset."""
    name: str | None = None
    """Configuration of a hub dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    streaming: bool = field(default=False, metadata=AFFECTS_COST)
    """Streams a hub dataset instead of downloading it first."""
    relative_to: str = "file"
    """Relative image paths of a JSONL refer to its folder (`file`) or to the working folder (`cwd`)."""
    allow_urls: bool = field(default=False, metadata=AFFECTS_COST)
    """Allows images to be downloaded from URLs in the data."""
    allow_outside: bool = field(default=False, metadata=AFFECTS_COST)
    """Allows `write.image=bytes` to copy images from anywhere on this disk that a row names. Otherwise only
    images below the folder of the data are copied; other rows are captioned all the same."""
    count: int | None = None
    """Number of images to generate (data=scenes); None is the sample in the package."""
    seed: int = 0
    """Seed of the generated images (data=scenes)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Options of a source from another package."""


@dataclass
class PipelineSettings:
    """The steps, by the column that each writes."""

    steps: dict[str, Any] = field(default_factory=dict)
    """Free-form here: `scalecap.interpreter.binding` validates each step against its stage."""
    budget: int | None = None
    """Maximum number of requests per image, cache hits included; None is no limit. With a budget, steps run
    one after the other, and skipped items are flagged and counted. Retries of an invalid reply count, and
    are always made; metrics do not count."""
    verified: dict[str, str] = field(
        default_factory=lambda: {"sentences": "golden_sentences", "details": "final_details"},
        metadata=AFFECTS_STEPS,
    )
    """Columns of verified texts, by the prompt variable of the `also=` steps that read them."""
    imports: list[str] = field(default_factory=list)
    """Modules to import first, which register custom stages."""
    cases: list[Any] = field(default_factory=list, metadata=AFFECTS_NOTHING)
    """Test cases for `scalecap test`: rows, scripted replies and expected columns."""


@dataclass
class EvaluateSettings:
    """Inputs of the metrics of `evaluate=`."""

    caption: Any = "final_caption"
    """Caption column, or a list of them, e.g. `[final_caption,sonnet]`; required with `pipeline=none`."""
    before: list[str] = field(default_factory=lambda: ["init_caption", "golden_sentences", "final_details"])
    """Columns of earlier steps that metrics without a model also score."""
    initial: str | None = "init_caption"
    """Column of the first caption, which later ones are compared with."""
    words: int | None = None
    """Truncates every caption to this many words, to compare captions of equal length."""


@dataclass
class CacheSettings:
    """The cache of replies: the same request to the same model is computed once."""

    enabled: bool = True
    dir: str = "~/.cache/scalecap/replies"
    """Folder of the cache."""


@dataclass
class RunnerSettings:
    """Where the pipeline runs."""

    name: str = "local"
    """`local` or `ray`."""
    actors: int = 1
    """Number of actors on the cluster, each with its own engine (runner=ray)."""
    gpus_per_actor: float | None = None
    """GPUs per actor, e.g. 2 with `engine.args.tensor_parallel_size=2`; None is 1 if the cluster has any."""
    address: str | None = None
    """Address of the cluster's head: `auto` on one of its machines, `ray://HOST:10001` from outside; None
    starts Ray on this machine."""


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
    """Sampling parameters, unless a step sets its own."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    cache: CacheSettings = field(default_factory=CacheSettings, metadata=AFFECTS_NOTHING)
    runner: RunnerSettings = field(default_factory=RunnerSettings, metadata=AFFECTS_COST)
    write: WriteSettings = field(default_factory=WriteSettings, metadata=AFFECTS_NOTHING)
    labels: LabelsSettings = field(default_factory=LabelsSettings)
    calibration: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """`calibration.json` of a labelled run (`scalecap calibrate`), which sets the thresholds of its checks to
    the error rate `wrong`."""
    wrong: Any = None
    """Guaranteed error rate: at most this share of what a check keeps is wrong, e.g. 0.05 for all calibrated
    checks, or `{golden_sentences: 0.05}` for some."""
    seed: int = 0
    """Random seed; each request derives its own from it and its content."""
    output: str = field(default=MISSING, metadata=AFFECTS_NOTHING)
    """Folder of the run. A run in an existing folder resumes: finished rows are not redone."""
    resume: str = field(default="same", metadata=AFFECTS_NOTHING)
    """`same` resumes a folder only with its own config; `force` with any config."""
    check: bool = field(default=False, metadata=AFFECTS_NOTHING)
    """Dry run: checks the config and prints the plan, without loading a model."""
    progress: bool = field(default=True, metadata=AFFECTS_NOTHING)
    """Shows a live progress bar on a terminal; progress is logged in any case."""
    objective: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Metric that a sweeper such as optuna maximises, and whose best value a comparison highlights; prefix
    `-` to minimise."""
    report: bool | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Writes `report.html` at the end; None writes it for a single run of at most 200 rows."""
    max_failures: str | None = field(default="100%", metadata=AFFECTS_NOTHING)
    """Stops the run at this number of failed rows, or at this percentage of the finished ones (from the 20th
    row on); null never stops. The same command resumes."""
    min_mass: float = 0.1
    """A check counts as unanswered when its options (such as yes and no) together have a lower probability
    than this. If most of the first 50 checks of a step are unanswered, the run stops and says why. 0 accepts
    every answer, and never stops."""
    max_requests: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run after this number of requests; cache hits do not count. This limit and the next two apply
    to one invocation: a resumed run starts counting again."""
    max_tokens: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run after this number of tokens, of prompts and replies together."""
    max_cost: float | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Stops the run at this cost, in the currency of `engine.price`."""
    edits: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    """JSONL file of edited columns by row id (`scalecap/run/edits.py`): these rows are redone from there."""
    preview: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Takes only the first rows, this many, and estimates the cost of all; the same command without it
    resumes."""
    rows_in_flight: int | None = field(default=None, metadata=AFFECTS_NOTHING)
    """Rows in flight (per actor with runner=ray); None is as many as keep the engine busy while their images
    stay in its KV cache."""

    def by_role(self, used: Collection[str] | None = None) -> dict[str, RoleSettings]:
        """The model and engine of each role; a role without settings of its own uses those of `vlm`.

        Args:
            used: roles to return; None is all.
        """
        models = {role: model for role, model in vars(self.model).items() if used is None or role in used}
        default = ModelSettings(name=self.model.vlm.name)
        found = {}
        for role, own in models.items():
            model = self.model.vlm if own == default else own
            found[role] = RoleSettings(replace(model, engine={}), own_engine(self.engine, model.engine))
        return found

    def problems(self) -> list[str]:
        """Values of the right type that are invalid, one message each."""
        minimums = dict.fromkeys(_COUNTS, 1) | {"max_cost": 0, "runner.gpus_per_actor": 0}
        found = [
            f"{key}={value}: must be {minimum} or more"
            for key, minimum in minimums.items()
            if (value := attrgetter(key)(self)) is not None and value < minimum
        ]
        found += [f"sampling.{problem}" for problem in self.sampling.problems()]
        limit = re.fullmatch(r"(\d+|\d+(?:\.\d+)?%)", self.max_failures or "100%")
        if limit is None or not 0 < float(limit[1].rstrip("%")) <= (100 if "%" in limit[1] else math.inf):
            found.append(
                f"max_failures={self.max_failures}: expected a count (1 or more), a percentage (5%) or null"
            )
        if not 0 <= self.min_mass <= 1:
            found.append(f"min_mass={self.min_mass}: must be a probability, from 0 to 1")
        if not self.output.strip():
            found.append("output= is empty: name a folder, as in output=runs/photos")
        if self.resume not in ("same", "force"):
            found.append(f"resume={self.resume}: expected same or force")
        if self.data.relative_to not in ("file", "cwd"):
            found.append(f"data.relative_to={self.data.relative_to}: expected file or cwd")
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
        steps = [step for step in self.pipeline.steps.values() if isinstance(step, dict)]
        if self.evaluate.caption is None and any(step.get("captions", "") is None for step in steps):
            found.append("evaluate.caption=COLUMN is required: the captions to score")
        if any(step.get("stage") == "context" and step.get("columns") in ([], {}) for step in steps):
            found.append("data.context=[COLUMN] is required: the texts that the captions' prompt includes")
        if (self.calibration is None) != (self.wrong is None):
            found.append("calibration=FILE and wrong=SHARE must be given together")
        wrong = self.wrong if isinstance(self.wrong, dict) else {"": self.wrong}
        found += [
            f"wrong={f'{{{step}: {value}}}' if step else value}: must be above 0 and below 1"
            for step, value in wrong.items()
            if value is not None and not (type(value) is float and 0 < value < 1)
        ]
        return found


class SettingsError(Exception):
    """Settings are invalid; the message names their keys."""


def schema() -> DictConfig:
    """`Settings` as a typed config, which the YAML files and overrides are merged into."""
    node = OmegaConf.structured(Settings)
    assert isinstance(node, DictConfig)
    OmegaConf.set_readonly(node.sampling, False)
    free = [node.pipeline.steps, node.engine.args, node.engine.extra_body, node.data.args]
    for model in node.model.values():
        free += [model.chat_template_kwargs, model.engine]
    for each in free:
        OmegaConf.set_struct(each, False)
    return node


ConfigStore.instance().store(name="schema", node=schema())
