"""The Python API, for scripts, notebooks and async programs.

    from scalecap import Captioner

    with Captioner("Qwen/Qwen3-VL-4B-Instruct", pipeline="scalecap") as captioner:
        rows = captioner.map(dataset, output="runs/x")
        one = captioner("cat.jpg")

It composes the same configuration as the command line and calls the same `run`: checks, run folder, cache,
resume, failure handling and summary are the same.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from omegaconf import OmegaConf

from scalecap.calibration.record import CalibrationError
from scalecap.calibration.use import AppliedPromise, apply_promises, check_models, check_scope
from scalecap.config.compose import compose, from_config, quoted
from scalecap.config.settings import CONF, DataSettings, Settings, SettingsError
from scalecap.data import DataError
from scalecap.data.images import open_image
from scalecap.data.memory import open_memory, to_dataset, with_captions
from scalecap.data.sources import RowSource, infer_kinds, json_safe
from scalecap.engines import Engines
from scalecap.engines.base import EngineError
from scalecap.interpreter.cache import Cache, CacheError
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Pipeline, PipelineError, image_pool
from scalecap.report.run_page import write_report
from scalecap.rows import Row
from scalecap.run.check import build_pipeline
from scalecap.run.progress import screen_handler
from scalecap.run.summary import Summary
from scalecap.runner import RunError, embedded_model_warning, run

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_DATA_KEYS = ("data.context", "data.allow_urls")
"""Settings of a dataset that hold for any, those of `map` too."""


class CaptionError(Exception):
    """An image could not be captioned; `columns` are those that were written before the failure."""

    def __init__(self, message: str, columns: dict[str, Any]) -> None:
        super().__init__(message)
        self.columns = columns


class Captioner:
    """A pipeline and its models; a context manager that frees the models.

    The models are loaded with the first image and stay until `close` (or the end of the `with` block).

    Args:
        model: hub name, local folder, or an option of `conf/model` such as `"qwen3-vl-4b"`. None is the
            embedded model, which knows only the embedded world.
        overrides: as on the command line: `"pipeline/check=both"`, `"model.llm.name=…"`.
        config_dir: folder of your own YAML files, as `--config-dir`.
        values: the same as Python values: a string or list chooses options of a group, a mapping sets keys:
            `pipeline="scalecap"`, `also=["closing_check"]`, `prompts={"verify": "…{{ text }}…"}`,
            `sampling={"temperature": 0.2}`, `seed=3`.

    Raises:
        SettingsError: a key or value is invalid, or an argument of `map`; the message names it and similar
            ones.
        RunError: the pipeline is invalid (unknown stage, missing column …).

    Example:
        >>> with Captioner() as captioner:
        ...     captioner("scene.jpg")["final_caption"]
        'The scene is at night. …'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *overrides: str,
        config_dir: str | os.PathLike[str] | None = None,
        **values: Any,
    ) -> None:
        self._config, self._overrides = compose(
            [*_model(model), *overrides], values, config_dirs=[] if config_dir is None else [config_dir]
        )
        for key in (word.lstrip("+").partition("=")[0] for word in self._overrides):
            if key in ("data", "output") or (key.startswith("data.") and key not in _DATA_KEYS):
                raise SettingsError(
                    f"{key}: the data and the folder are arguments of captioner.map(data, image=…, output=…)"
                )
        self.settings: Settings = from_config(self._config)
        """All settings, typed. Those of a dataset and of the run's folder are arguments of `map`."""
        self._source: RowSource | None = None
        self.summary: Summary | None = None
        """Summary of the last `map`: rows, requests, tokens, metrics, notes."""
        self._engines = Engines()
        self._images = image_pool()
        self._cache: Cache | None = None
        self._dispatcher: asyncio.Task[Dispatcher] | None = None
        self._closed = False
        self._warned = False
        self._promises: Mapping[str, AppliedPromise] = {}
        self._pipelines: dict[tuple[tuple[str, str], ...] | None, Pipeline] = {}
        """By the kinds of the input columns, so that prompts are compiled once and not per image."""
        self._build(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the models and closes the cache; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._engines.close()
        for pipeline in self._pipelines.values():
            for step in pipeline.steps:
                step.close()
        self._images.shutdown()
        if self._cache:
            self._cache.close()

    def plan(self) -> str:
        """The steps of the pipeline with their prompts, as text; loads no model."""
        return self._build(None).plan()

    def __call__(self, image: Any) -> dict[str, Any]:
        """Captions one image; returns the columns of all steps and `flags`, and writes no folder.

        Args:
            image: a path, bytes or a PIL image; or a mapping with the image under `"image"` and further
                columns that the steps read.

        Raises:
            CaptionError: this image failed; the message says where and why.
            RunError: no image can be captioned (a model can't be loaded, a column is missing).
        """
        with self._log_to_screen():
            return self._engines.run(self._one(image))

    async def acaption(self, image: Any) -> dict[str, Any]:
        """`captioner(image)` for async programs; concurrent calls share the model."""
        with self._log_to_screen():
            return await asyncio.wrap_future(self._engines.loop.submit(self._one(image)))

    def map(
        self, data: Any, *, image: str = "image", output: str | os.PathLike[str] | None = None
    ) -> "Dataset":
        """Captions a dataset and returns it with a column for each step, and `row_id`, `flags` and `error`.

        Args:
            data: a `datasets.Dataset` or `IterableDataset`, a pandas frame, or a list of paths, bytes, PIL
                images or mappings. Nothing of a `Dataset` is copied to disk.
            image: the image column.
            output: the folder of the run; an existing one resumes its run. None is a new folder below
                `outputs/`.

        Returns:
            The rows in their order, with their images. A failed row has the reason in `error`.

        Raises:
            RunError: nothing could be done, or the run was stopped; finished rows stay in the folder.
            KeyboardInterrupt: interrupted; rows in flight were finished, and the same call resumes.
        """
        if self._closed:
            raise RunError("the captioner is closed; call it inside its with block")
        folder = Path(output).expanduser() if output is not None else _new_folder()
        own = DataSettings(source="memory", image=image, allow_urls=self.settings.data.allow_urls)
        settings = replace(self.settings, data=own, output=str(folder), check=False)
        try:
            table = to_dataset(data, image)
            self._source = open_memory(table, own)
        except DataError as error:
            raise RunError(str(error)) from error
        streamed = not hasattr(table, "num_rows")
        write = replace(settings.write, format=list(dict.fromkeys(["parquet", *settings.write.format])))
        settings = replace(settings, write=replace(write, image="bytes") if streamed else write)
        with self._log_to_screen():
            self.summary = run(
                settings,
                source=self._source,
                pool=self._engines,
                command="Captioner.map",
                on_start=partial(self._record, folder, settings),
            )
        if self.summary.status == "interrupted":
            raise KeyboardInterrupt(f"interrupted; the same call with output={str(folder)!r} resumes")
        if self.summary.status == "stopped":
            raise RunError(
                f"stopped: {self.summary.reason}. Finished rows are in {folder}; the same call with"
                f" output={str(folder)!r} resumes"
            )
        return with_captions(table, folder / "dataset")

    def report(self) -> "Report":
        """The report of the last `map`, which a notebook shows inline. Raises RunError if there was none."""
        if self.summary is None:
            raise RunError("there is no run yet; call captioner.map(…) first")
        return Report(self.summary.report or write_report(self.summary.output, self._source))

    def _build(self, columns: Mapping[str, str] | None) -> Pipeline:
        key = None if columns is None else tuple(columns.items())
        if key in self._pipelines:
            return self._pipelines[key]
        try:
            settings, self._promises = apply_promises(self.settings)
            pipeline = build_pipeline(settings, columns)
            check_scope(self._promises, pipeline, settings)
        except (PipelineError, CalibrationError) as error:
            raise RunError(str(error)) from error
        self._pipelines[key] = pipeline
        return pipeline

    async def _one(self, image: Any) -> dict[str, Any]:
        cells = dict(image) if isinstance(image, Mapping) and "bytes" not in image else {"image": image}
        if cells.get("image") is None:
            raise CaptionError("there is no image; pass it under 'image'", {})
        urls = self.settings.data.allow_urls
        opened = partial(open_image, cells["image"], folders=[Path.cwd()], allow_urls=urls)
        columns = {name: json_safe(value) for name, value in cells.items() if name != "image"}
        if isinstance(cells["image"], str | os.PathLike):
            columns = {"image": os.fspath(cells["image"]), **columns}
        pipeline = self._build({"image": "any", **infer_kinds([columns])})
        row = Row(0, columns, opened)
        self._warn(pipeline, row)
        try:
            dispatcher = await self._get_dispatcher(pipeline)
            finished = await pipeline.run_row(row, dispatcher, self._images)
        except (EngineError, CacheError, CalibrationError) as error:
            raise RunError(str(error)) from error
        if failure := finished.error:
            where = f"{failure['step']}: " if failure["step"] else ""
            raise CaptionError(f"{where}{failure['message']}", finished.columns)
        return {**finished.columns, "flags": finished.flags}

    def _warn(self, pipeline: Pipeline, row: Row) -> None:
        """Warns once, with the first image that the embedded model does not know."""
        if self._warned:
            return
        roles = self.settings.by_role(pipeline.roles)
        if warning := embedded_model_warning(roles, DataSettings(source="memory"), [row]):
            self._warned = True
            log.warning(warning)

    async def _get_dispatcher(self, pipeline: Pipeline) -> Dispatcher:
        """The dispatcher; concurrent calls wait for one load of the models."""
        if self._closed:
            raise RunError("the captioner is closed; call it inside its with block")
        task = self._dispatcher
        if task is None or (task.done() and task.exception() is not None):
            task = self._dispatcher = asyncio.create_task(self._load(pipeline))
        return await asyncio.shield(task)

    async def _load(self, pipeline: Pipeline) -> Dispatcher:
        settings = self.settings
        roles = settings.by_role(pipeline.roles)
        if settings.cache.enabled and self._cache is None:
            self._cache = Cache(Path(settings.cache.dir).expanduser())
        engines = await self._engines.by_role(roles)
        identities = {role: engine.identity for role, engine in engines.items()}
        check_models(self._promises, pipeline, settings, identities)
        return Dispatcher(
            engines, self._cache, settings.sampling, settings.seed, RunUsage(), settings.min_mass
        )

    def _record(self, folder: Path, settings: Settings) -> None:
        """Writes `.hydra` in the folder of the run as the command line does, for reports and comparisons."""
        config = self._config.copy()
        for key in ("data", "write", "output"):
            OmegaConf.update(config, key, getattr(settings, key), merge=False)
        record = folder / ".hydra"
        record.mkdir(parents=True, exist_ok=True)
        (record / "error.txt").unlink(missing_ok=True)
        OmegaConf.save(config, record / "config.yaml")
        OmegaConf.save({"hydra": {"runtime": {"cwd": os.getcwd()}}}, record / "hydra.yaml")
        OmegaConf.save(OmegaConf.create(self._overrides), record / "overrides.yaml")

    @contextmanager
    def _log_to_screen(self) -> Iterator[None]:
        """Shows log messages on the screen, unless the program has configured logging."""
        logger = logging.getLogger("scalecap")
        if not self.settings.progress or logger.hasHandlers():
            yield
            return
        handler, level = screen_handler(), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class Report:
    """The report page of a run; a notebook shows it inline."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text("utf-8"), quote=True)
        style = "width:100%;height:700px;border:0"
        return f'<iframe srcdoc="{page}" style="{style}" sandbox="allow-scripts allow-downloads"></iframe>'


def _model(model: str | os.PathLike[str] | None) -> list[str]:
    """The override that selects a model: an option of `conf/model`, or any name."""
    if model is None:
        return []
    name = os.fspath(model)
    if (CONF / "model" / f"{name}.yaml").is_file():
        return [f"model={name}"]
    return [f"model.vlm.name={quoted(name)}"]


def _new_folder() -> Path:
    """A new folder `outputs/<date>/<time>`."""
    first = Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
