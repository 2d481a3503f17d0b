"""What a run writes of its rows besides `captions.jsonl`, and of which rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, PromptError, Template

IMAGES = ("path", "bytes", "none")
FORMATS = ("parquet", "webdataset")
SIDECARS = ("txt", "json")
BESIDE = ("new", "replace")
SELECT = "select"
"""Where the flags of a row tell that it was left out."""


@dataclass
class WriteSettings:
    """What a run writes of its rows besides `captions.jsonl`."""

    format: list[str] = field(default_factory=lambda: ["parquet"])
    """`parquet` is `dataset/`. `webdataset` is `webdataset/`, once the run is finished: tars with each
    picture's file and all its columns as JSON."""
    image: str = "path"
    """The picture's column in `dataset/`: `path` is its name as in the data; `bytes`, once the run is
    finished, its file, so that the data set can be passed on alone; `none` leaves the column out."""
    select: str | None = None
    """A Jinja expression over the columns of a row, such as `grounding.share >= 0.8`. Rows for which it does
    not hold are in `captions.jsonl` alone, flagged; None takes every row."""
    sidecars: str | None = None
    """A file for each picture, in `sidecars/` by the name that its row's id makes: `txt` holds the caption,
    on one line, `json` all columns; None writes none."""
    beside: str | None = None
    """Sidecars next to the picture files instead, once the run is finished: `new` writes no file that is
    there already, `replace` also over files of that name."""
    template: str = "{{ final_caption }}"
    """A Jinja template over the columns of a row, the text of `sidecars=txt`. A null is empty text."""
    prefix: str = ""
    """Before the text of `sidecars=txt`."""
    suffix: str = ""
    """Behind it."""

    @property
    def needs_pictures(self) -> bool:
        """Whether something is written that the data's own rows are needed for."""
        return self.holds_pictures or self.beside is not None or "webdataset" in self.format

    @property
    def holds_pictures(self) -> bool:
        """Whether `dataset/` is to hold the pictures' files."""
        return self.image == "bytes" and "parquet" in self.format

    @property
    def folders(self) -> list[str]:
        """Folders of the run that are made besides `dataset/`."""
        sidecars = ["sidecars"] if self.sidecars and not self.beside else []
        return [*(["webdataset"] if "webdataset" in self.format else []), *sidecars]

    def problems(self) -> list[str]:
        """Values that make no sense, each with its key."""
        one_of = [("image", self.image, IMAGES), ("sidecars", self.sidecars, SIDECARS)]
        one_of += [("beside", self.beside, BESIDE), *(("format", each, FORMATS) for each in self.format)]
        found = [
            f"{key}={value}: no such form{did_you_mean(value, known)}"
            for key, value, known in one_of
            if value is not None and value not in known
        ]
        if self.beside and not self.sidecars:
            found.append(f"beside={self.beside} needs write.sidecars=txt or json: what to write there")
        texts = {"template": self.template, "prefix": self.prefix, "suffix": self.suffix}
        for key, text in texts.items():
            if text != getattr(WriteSettings, key) and self.sidecars != "txt":
                found.append(f"{key}: only write.sidecars=txt has such a text")
        for key, parse in (("select", Expression), ("template", Template)):
            try:
                parse(getattr(self, key) or "none")
            except PromptError as error:
                found.append(f"{key}: {error}")
        return found

    def column_problems(self, columns: Collection[str], steps: Collection[str]) -> list[str]:
        """Variables of `select` and `template` that are none of the output's columns; a step in the way."""
        read = {"select": Expression(self.select).variables} if self.select else {}
        if self.sidecars == "txt":
            read["template"] = Template(self.template).variables
        found = [
            f"write.{key}: no column {name!r}{did_you_mean(name, columns)}"
            for key, names in read.items()
            for name in sorted(names.difference(columns))
        ]
        if self.select and SELECT in steps:
            found.append(f"write.select sets the flags named {SELECT!r}: rename the step of that name")
        return found


class Select:
    """Decides whether a row is exported."""

    def __init__(self, source: str, columns: Sequence[str]) -> None:
        """`columns` are the steps', whose flags the expression may look at. Raises PromptError."""
        self._expression = Expression(source)
        self._unflagged: dict[str, list[str]] = {name: [] for name in columns}

    def exclusion(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """The flag of a row that is left out; None for one that is taken.

        A row that failed is left out, and so is one for which the expression can't be computed, as where it
        compares a null; why, is told beside the flag.
        """
        if row["error"] is not None:
            return "left_out", ""
        try:
            holds = self._expression.holds(**{**row, "flags": {**self._unflagged, **row["flags"]}})
        except PromptError as error:
            return "not_computed", str(error)
        return None if holds else ("left_out", "")
