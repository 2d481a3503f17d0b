"""The data set card of a run: models, steps and prompts, counts, metrics, versions, the command."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData
from omegaconf import OmegaConf

from scalecap.data.files import redact_urls
from scalecap.messages import plural
from scalecap.run.folder import Run
from scalecap.stats import is_part, label

SIZES = (
    *("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"),
    *("10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T"),
)
"""The hub's size categories of data sets, each ten times the one before."""
MAX_SEARCHED = 1000
"""Rows searched for an example."""


def card(run: Run, repo: str, license: str, columns: pa.Schema) -> DatasetCard:
    """The card of a finished run's data set.

    Args:
        repo: its name on the hub.
        columns: the schema of its shards.
    """
    rows = run.summary["rows"]
    count = rows["done"] + rows["failed"] - (rows.get("left_out") or 0)
    data = DatasetCardData(
        license=license,
        task_categories=["image-to-text"],
        size_categories=[SIZES[max(3, len(str(count))) - 3]],
        tags=["scalecap", "image-captioning", "synthetic"],
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        ],
    )
    parts = [f"---\n{data.to_yaml()}\n---", *_parts(run, repo, license, _images(run, columns))]
    return DatasetCard("\n\n".join(parts) + "\n")


def _images(run: Run, columns: pa.Schema) -> str:
    """Whether the images are in the data set."""
    if run.image not in columns.names:
        return "The images are not included."
    kind = columns.field(run.image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"The images are in the column {code(run.image)}."
    return f"The images are not included; the column {code(run.image)} has their names."


def _parts(run: Run, repo: str, license: str, images: str) -> Iterator[str]:
    """The card's paragraphs."""
    summary = run.summary
    yield f"# {_plain(repo.rpartition('/')[2])}"
    checked = (
        ": a vision-language model describes an image, its statements are checked against the image, and a"
        " caption is written from those that passed"
    )
    yield (
        f"Captions made with scalecap{checked if summary.get('checks') else ''}. Models wrote them, so they"
        f" may contain errors. {images}"
    )
    yield fenced(f'import datasets\n\nrows = datasets.load_dataset("{repo}", split="train")', "python")
    if license == "unknown":
        yield (
            "**License:** not stated by the authors. The images and the models below may come with terms of"
            " their own."
        )
    yield from _counts(summary, run.promises)
    done = (row for row in islice(run.rows(), MAX_SEARCHED) if not row.get("error"))
    captions = ((column, row[column]) for row in done if (column := run.caption_column(row)))
    if shown := next((each for each in captions if each[1]), None):
        yield "## Example"
        yield f"The column {code(shown[0])} of a row:"
        yield fenced(str(shown[1]))
    if summary.get("metrics"):
        yield "## Metrics"
        yield from _metrics(summary["metrics"])
    yield "## How it was made"
    yield _table(("role", "model"), [(role, code(name)) for role, name in summary.get("models", {}).items()])
    yield "Each step writes the column of its name:"
    for name, step in run.steps.items():
        yield f"### {code(name)}"
        yield from _step(step)
    yield "The command:"
    yield fenced(redact_urls(str(summary.get("command", ""))))
    yield _table(("library", "version"), list(summary.get("versions", {}).items()))


def _counts(summary: Mapping[str, Any], promised: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = summary["rows"]
    yield "## Rows"
    yield (
        f"{plural(rows['done'], 'row')} succeeded; {rows['failed']:,} failed, with the reason in the column"
        " `error`. `row_id` is unique; `flags` lists, as JSON, what happened at each step (truncated,"
        " unanswered, …)."
    )
    if rows.get("left_out"):
        yield f"{rows['left_out']:,} of them, including failed ones, were excluded from the data set."
    checks = summary.get("checks", {})
    if checks:
        cells = [(code(step), f"{n['kept']:,}", f"{n['dropped']:,}") for step, n in checks.items()]
        yield "Sentences and answers kept by each check:"
        yield _table(("check", "kept", "dropped"), cells)
    promises = [f"{code(step)}: {_plain(each['sentence'])}." for step, each in promised.items()]
    if promises:
        yield "\n".join(f"- {promise}" for promise in promises)


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    whole = {code(label(name)): each for name, each in metrics.items() if not is_part(name)}
    cells = [
        (name, f"{each['mean']:.3g}", f"{each['low']:.3g} to {each['high']:.3g}", f"{each['rows']:,}")
        for name, each in whole.items()
    ]
    yield _table(("metric", "mean", "95 % interval", "rows"), cells)


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    """A step's stage, settings and prompt."""
    settings = {name: value for name, value in step.items() if name not in ("stage", "prompt")}
    yield f"Stage {code(str(step.get('stage', '')))}"
    if settings:
        yield fenced(OmegaConf.to_yaml(OmegaConf.create(settings)).rstrip(), "yaml")
    if isinstance(step.get("prompt"), str):
        yield "Prompt:"
        yield fenced(step["prompt"], "jinja")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fenced(text: str, language: str = "") -> str:
    """The text in a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def code(text: str) -> str:
    """The text as inline code, also in a table."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (_longest(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+!|<>-])", r"\\\1", text)
