"""What can be checked of a run before a model loads: its data, its pipeline and where it writes."""

import os
from collections.abc import Mapping
from pathlib import Path

from scalecap.config.exports import WriteSettings
from scalecap.config.settings import Settings
from scalecap.data import DataError, Source
from scalecap.data.replacing import is_foreign
from scalecap.data.sinks import load_sinks
from scalecap.data.sources import open_source
from scalecap.interpreter.pipeline import Pipeline, PipelineError
from scalecap.rows import OUTPUT_COLUMNS
from scalecap.run.journal import JOURNAL
from scalecap.stats import label
from scalecap.text.suggestions import did_you_mean


def check(settings: Settings, source: Source | None = None) -> tuple[Source, Pipeline]:
    """Opens the data and builds the pipeline.

    Args:
        source: the rows, in place of those that `settings.data` names.

    Raises:
        DataError: the data can't be read or is empty, or what `write` names can't be written.
        PipelineError: a step or setting does not fit; the message lists all problems.
    """
    source = source or open_source(settings.data)
    if source.total == 0:
        raise no_rows(settings)
    pipeline = build_pipeline(settings, source.columns)
    if not pipeline.steps:
        raise PipelineError(["it has no steps: choose one with pipeline=default, or give pipeline.steps"])
    if missing := pipeline.missing_requirements():
        raise PipelineError(missing)
    _check_write(settings, source, pipeline)
    _check_objective(settings, pipeline)
    _check_prices(settings, pipeline)
    return source, pipeline


def no_rows(settings: Settings) -> DataError:
    """The error of data, or a shard of it, without rows."""
    data = settings.data
    what = f"has too few rows for data.shard={data.shard}, which is empty" if data.shard else "has no rows"
    return DataError(f"data={data.source} {what}" + (f": {data.path}" if data.path else ""))


def build_pipeline(settings: Settings, columns: Mapping[str, str] | None) -> Pipeline:
    """The steps of the settings; raises PipelineError.

    Args:
        columns: name to kind of the columns of the data; None if they are unknown.
    """
    given = settings.pipeline
    return Pipeline.build(
        given.steps, columns, imports=given.imports, sampling=settings.sampling, budget=given.budget
    )


def _check_write(settings: Settings, source: Source, pipeline: Pipeline) -> None:
    columns = [*source.columns, *pipeline.writers, *OUTPUT_COLUMNS]
    if problems := settings.write.column_problems(columns, [step.name for step in pipeline.steps]):
        raise PipelineError(problems)
    load_sinks(settings.write)
    check_output(Path(settings.output), settings.write)


def check_output(output: Path, write: WriteSettings) -> None:
    """Raises DataError if a run in this folder would replace files or folders that scalecap did not write."""
    for path in (output / name for name in write.folders):
        if is_foreign(path):
            raise DataError(f"{path} already exists and was not written by scalecap; give another output=DIR")
    # A folder that can't be read is an error of the journal, so os.path, which raises none.
    if os.path.exists(output / JOURNAL):
        return
    for name in ("captions.jsonl", *(["dataset"] if "parquet" in write.format else [])):
        if os.path.exists(output / name):
            raise DataError(
                f"{output / name} already exists, and {output} holds no run: there is no {JOURNAL} in it;"
                " give another output=DIR"
            )


def _check_objective(settings: Settings, pipeline: Pipeline) -> None:
    metric = label((settings.objective or "").lstrip("-"))
    steps = [step.name for step in pipeline.steps if step.is_metric]
    if not metric or any(f"{metric}.".startswith(f"{step}.") for step in steps):
        return
    step = metric.partition(".")[0]
    hint = did_you_mean(step, steps) if steps else "; the pipeline has no metrics: add one with evaluate=…"
    raise PipelineError([f"objective={settings.objective}: no step {step} writes numbers{hint}"])


def _check_prices(settings: Settings, pipeline: Pipeline) -> None:
    roles = settings.by_role(pipeline.roles)
    unpriced = [role for role, (_, engine) in roles.items() if None in engine.price.needed]
    if settings.max_cost is not None and unpriced:
        needed = "requires engine.price={prompt: …, generated: …} of the engine of"
        raise PipelineError([f"max_cost={settings.max_cost} {needed} {' and '.join(unpriced)}"])
