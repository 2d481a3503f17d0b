"""Settings of the files that a run exports besides `captions.jsonl`, and which rows they hold."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalecap import plugins
from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, PromptError, Template

IMAGES = ("path", "bytes", "none")
FORMATS = ("parquet", "webdataset")
SIDECARS = ("txt", "json")
BESIDE = ("new", "replace")
SELECT = "select"
"""Key in the flags of a row that was not exported."""


@dataclass
class WriteSettings:
    """Files that a run exports besides `captions.jsonl`."""

    format: list[str] = field(default_factory=lambda: ["parquet"])
    """`parquet` writes `dataset/`. `webdataset` writes `webdataset/` once the run is finished: tars of image
    files, each with all its columns as JSON. `package/name` is a format of another package."""
    image: str = "path"
    """The image column of `dataset/`: `path` is the image's name in the data; `bytes` is its file (once the
    run is finished), so that the data set is self-contained; `none` omits the column. Formats of other
    packages get the files with `bytes`, too."""
    select: str | None = None
    """A Jinja expression over the columns of a row, such as `grounding.share >= 0.8`. Only rows for which it
    is true are exported; the others are flagged in `captions.jsonl`. None exports every row."""
    sidecars: str | None = None
    """One file per image in `sidecars/`, named after the row's id: `txt` is the caption on one line, `json`
    all columns; None writes none."""
    beside: str | None = None
    """Writes sidecars next to the image files instead, once the run is finished: `new` keeps existing files,
    `replace` overwrites them."""
    template: str = "{{ final_caption }}"
    """Jinja template of the text of `sidecars=txt`, over the columns of a row. Null is empty."""
    prefix: str = ""
    """Text before that of `sidecars=txt`, e.g. a trigger word."""
    suffix: str = ""
    """Text after it."""

    @property
    def needs_images(self) -> bool:
        """Whether an export needs the data's rows once more."""
        return self.embeds_images or self.beside is not None or "webdataset" in self.format

    @property
    def embeds_images(self) -> bool:
        """Whether `dataset/`, or the format of another package, holds image files."""
        return self.image == "bytes" and any(each != "webdataset" for each in self.format)

    @property
    def plugins(self) -> dict[str, str]:
        """Formats of other packages, each with its folder in the run's."""
        return {each: each.replace("/", "-") for each in self.format if "/" in each}

    @property
    def folders(self) -> list[str]:
        """Folders that are written besides `dataset/`."""
        sidecars = ["sidecars"] if self.sidecars and not self.beside else []
        return [*(["webdataset"] if "webdataset" in self.format else []), *sidecars, *self.plugins.values()]

    @property
    def exports(self) -> list[str]:
        """All folders that are written."""
        return [*(["dataset"] if "parquet" in self.format else []), *self.folders]

    def problems(self) -> list[str]:
        """Invalid values, one message each."""
        one_of: list[tuple[str, str | None, Sequence[str]]]
        one_of = [("image", self.image, IMAGES), ("sidecars", self.sidecars, SIDECARS)]
        formats = [*FORMATS, *(plugins.names("sinks") if self.plugins else ())]
        one_of += [("beside", self.beside, BESIDE), *(("format", each, formats) for each in self.format)]
        found = [
            f"{key}={value}: invalid value{did_you_mean(value, known)}"
            for key, value, known in one_of
            if value is not None and value not in known
        ]
        if self.beside and not self.sidecars:
            found.append(f"beside={self.beside} requires write.sidecars=txt or json")
        texts = {"template": self.template, "prefix": self.prefix, "suffix": self.suffix}
        for key, text in texts.items():
            if text != getattr(WriteSettings, key) and self.sidecars != "txt":
                found.append(f"{key}: requires write.sidecars=txt")
        for key, parse in (("select", Expression), ("template", Template)):
            try:
                parse(getattr(self, key) or "none")
            except PromptError as error:
                found.append(f"{key}: {error}")
        return found

    def column_problems(self, columns: Collection[str], steps: Collection[str]) -> list[str]:
        """Variables of `select` and `template` that are not columns; a step whose name is reserved.

        Args:
            columns: of the output.
            steps: names of the steps.
        """
        read = {"select": Expression(self.select).variables} if self.select else {}
        if self.sidecars == "txt":
            read["template"] = Template(self.template).variables
        found = [
            f"write.{key}: no column {name!r}{did_you_mean(name, columns)}"
            for key, names in read.items()
            for name in sorted(names.difference(columns))
        ]
        if self.select and SELECT in steps:
            found.append(f"write.select sets the flag {SELECT!r}; rename the step of that name")
        return found


class Select:
    """Decides whether a row is exported."""

    def __init__(self, source: str, columns: Sequence[str]) -> None:
        """Parses the expression, which may also read the flags of these steps. Raises PromptError."""
        self._expression = Expression(source)
        self._unflagged: dict[str, list[str]] = {name: [] for name in columns}

    def exclusion(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """The flag of a row that is not exported, and the reason; None for one that is.

        Failed rows are not exported, nor those for which the expression can't be computed (null > 1).
        """
        if row["error"] is not None:
            return "left_out", ""
        try:
            holds = self._expression.holds(**{**row, "flags": {**self._unflagged, **row["flags"]}})
        except PromptError as error:
            return "not_computed", str(error)
        return None if holds else ("left_out", "")
