"""The card of a run's data set: what was done to make it, with what, and how well it went."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData
from omegaconf import OmegaConf

from scalecap.data.files import redact_urls
from scalecap.run.folder import Row, Run
from scalecap.stats import is_part, label

SIZES = (
    *((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")),
    *((1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B")),
)
"""Fewer rows than this, and how the hub calls so many."""
MORE = "100B<n<1T"
LOOKED = 1000
"""Rows looked through for one to show."""


def card(run: Run, repo: str, licence: str, columns: pa.Schema) -> DatasetCard:
    """The card of a finished run's data set, as it will stand in `repo`; `columns` are its shards'."""
    rows = run.summary["rows"]
    count = rows["done"] + rows["failed"] - (rows.get("left_out") or 0)
    data = DatasetCardData(
        license=licence,
        task_categories=["image-to-text"],
        size_categories=[next((name for most, name in SIZES if count < most), MORE)],
        tags=["scalecap", "image-captioning", "synthetic"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    )
    parts = [f"---\n{data.to_yaml()}\n---", *_parts(run, repo, licence, _pictures(run, columns))]
    return DatasetCard("\n\n".join(parts) + "\n")


def _pictures(run: Run, columns: pa.Schema) -> str:
    """Whether the pictures are in the data set."""
    if run.image not in columns.names:
        return "The pictures are not in it."
    kind = columns.field(run.image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"The pictures are in the column {code(run.image)}."
    return f"The pictures are not in it; the column {code(run.image)} names them."


def _parts(run: Run, repo: str, licence: str, pictures: str) -> Iterator[str]:
    """The card's paragraphs."""
    told = run.summary
    yield f"# {_plain(repo.rpartition('/')[2])}"
    yield (
        "Captions made with scalecap: a vision-language model describes a picture, what it said is checked"
        " against the picture, and a caption is made of what passed. They were written by models and hold"
        f" their mistakes. {pictures}"
    )
    yield fenced(f'import datasets\n\nrows = datasets.load_dataset("{repo}", split="train")', "python")
    if licence == "unknown":
        yield (
            "**Licence:** not stated by whoever made this. The pictures, and the terms of the models below,"
            " may each set their own."
        )
    yield from _counts(told, run.promises)
    captions = ((column, row[column]) for row in _good(run) if (column := run.caption_column(row)))
    if shown := next((each for each in captions if each[1]), None):
        yield "## A row"
        yield f"Its column {code(shown[0])}:"
        yield fenced(str(shown[1]))
    if told.get("metrics"):
        yield "## Measured"
        yield from _metrics(told["metrics"])
    yield "## How it was made"
    yield _table(("role", "model"), [(role, code(name)) for role, name in told.get("models", {}).items()])
    yield "Each step writes the column that it is named by:"
    for name, step in run.steps.items():
        yield f"### {code(name)}"
        yield from _step(step)
    yield "The command:"
    yield fenced(redact_urls(str(told.get("command", ""))))
    yield _table(("library", "version"), list(told.get("versions", {}).items()))


def _counts(told: Mapping[str, Any], promised: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = told["rows"]
    yield "## Rows"
    yield (
        f"{rows['done']:,} rows are done; {rows['failed']:,} failed and have their reason in the column"
        " `error`. `row_id` names each, `flags` tells, as JSON, what happened on the way."
    )
    if rows.get("left_out"):
        yield f"Of them {rows['left_out']:,} were left out of the data set, failed ones among them."
    checks = told.get("checks", {})
    if checks:
        cells = [(code(step), f"{n['kept']:,}", f"{n['dropped']:,}") for step, n in checks.items()]
        yield "What the checks made of sentences and answers:"
        yield _table(("check", "kept", "dropped"), cells)
    promises = [f"{code(step)}: {_plain(each['sentence'])}." for step, each in promised.items()]
    if promises:
        yield "\n".join(f"- {promise}" for promise in promises)


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    cells = [
        (
            code(label(name)),
            f"{each['mean']:.3g}",
            f"{each['low']:.3g} to {each['high']:.3g}",
            f"{each['rows']:,}",
        )
        for name, each in metrics.items()
        if not is_part(name)
    ]
    yield _table(("metric", "mean", "95 % interval", "rows"), cells)


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    """A step's stage and settings, its prompt apart, as it was asked."""
    settings = {name: value for name, value in step.items() if name not in ("stage", "prompt")}
    yield f"Stage {code(str(step.get('stage', '')))}"
    if settings:
        yield fenced(OmegaConf.to_yaml(OmegaConf.create(settings)).rstrip(), "yaml")
    if isinstance(step.get("prompt"), str):
        yield "asks:"
        yield fenced(step["prompt"], "jinja")


def _good(run: Run) -> Iterator[Row]:
    """The first rows that did not fail."""
    return (row for row in islice(run.rows(), LOOKED) if not row.get("error"))


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fenced(text: str, language: str = "") -> str:
    """The text in a block of code that nothing in it ends: the fence is longer than any of its own."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def code(text: str) -> str:
    """The text as code inside of a line or a table's cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (_longest(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+!|<>-])", r"\\\1", text)
