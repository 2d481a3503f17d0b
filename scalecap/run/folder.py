"""Reads a run back from its folder: `summary.json`, `captions.jsonl`, `.hydra` and the journal."""

import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap.config.effects import affects
from scalecap.config.labelled import LabelsSettings
from scalecap.data.images import image_name
from scalecap.run.journal import JOURNAL
from scalecap.stats import Pair, escaped, measures, parts

MAX_REPORT_ROWS = 10_000
"""Rows that a page shows; of a larger run, the first ones."""
ERROR_FILE = "error.txt"
"""In `.hydra`: why the job failed, if its last attempt did."""
REFUSED_FILE = "refused.txt"
"""In `.hydra`, until a sweep's comparison is written: why its job left the run in the folder as it was."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’\-.]\w+)*")
"""A word; in Chinese and Japanese, which put no spaces between words, a character."""

Status = Literal["finished", "interrupted", "stopped", "preview", "failed", "unfinished"]
Row = Mapping[str, Any]


class FolderError(Exception):
    """The folder holds no readable run; the message names it and the fix."""


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    folder: Path
    name: str

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`; empty when there is none, or when the last attempt failed before writing it."""
        found = None
        if not self.failure:
            with suppress(OSError, ValueError):
                found = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}

    @cached_property
    def failure(self) -> str:
        """Why the last attempt failed as a whole; empty when it did not."""
        for name in (REFUSED_FILE, ERROR_FILE):
            with suppress(OSError):
                return (self.folder / ".hydra" / name).read_text(encoding="utf-8").strip()
        return ""

    @property
    def status(self) -> Status:
        if self.failure:
            return "failed"
        status = self.summary.get("status", "unfinished")
        return status if status in ("finished", "interrupted", "stopped", "preview") else "unfinished"

    @property
    def reason(self) -> str:
        """Why it is not finished."""
        if self.status == "unfinished":
            return "there is no summary: the run is still going, or was killed"
        return self.failure or str(self.summary.get("reason", ""))

    @property
    def exit_code(self) -> int:
        """The exit code of the run: 0, 1, 3 or 130."""
        rows = self.summary.get("rows", {})
        if self.status == "interrupted":
            return 130
        if self.status not in ("finished", "preview") or not rows.get("done"):
            return 1
        return 3 if rows.get("failed") else 0

    @property
    def started_at(self) -> float:
        """When the last job in this folder started, in seconds since 1970."""
        try:
            return (self.folder / ".hydra" / "overrides.yaml").stat().st_mtime
        except OSError:
            return 0.0

    @cached_property
    def overrides(self) -> dict[str, str]:
        """Overrides of the command line that affect rows or cost, key to value."""
        found: dict[str, str] = {}
        words = _yaml(self.folder / ".hydra" / "overrides.yaml")
        for word in words if isinstance(words, ListConfig) else ():
            key, _, value = str(word).lstrip("+").partition("=")
            if affects(key.lstrip("~")) != "nothing":
                found[key.lstrip("~")] = "removed" if key.startswith("~") else value
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """`pipeline`, `data`, `evaluate`, `labels` and `objective`, resolved; empty when not known."""
        loaded = _yaml(self.folder / ".hydra" / "config.yaml")
        try:
            found: dict[str, Any] = {
                name: OmegaConf.to_container(loaded[name], resolve=True)
                for name in ("pipeline", "data", "evaluate", "labels")
                if name in loaded
            }
            return found | {"objective": loaded.get("objective")}
        except (OmegaConfBaseException, AttributeError, TypeError, ValueError):
            config = self._journal_header.get("config")
            return config if isinstance(config, dict) else {}

    @cached_property
    def _journal_header(self) -> dict[str, Any]:
        """The journal's last line with a config: {config, cwd}."""
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError), (self.folder / JOURNAL).open("rb") as file:
            for line in file:
                if line.startswith(b'{"config":'):
                    found = json.loads(line)
        return found

    @property
    def data_identity(self) -> dict[str, Any]:
        """What identifies its data: equal for two runs of the same data, whatever rows they take of it. Empty
        when not known."""
        data = dict(self.config.get("data") or {})
        if data.get("source") in (None, "memory"):
            return {}
        path = data.get("path")
        if isinstance(path, str) and "://" not in path:
            place = self.cwd / Path(path).expanduser()
            data["path"] = str(place) if data["source"] != "hub" or place.exists() else path
        if data.get("relative_to") == "cwd":
            data["relative_to"] = str(self.cwd)
        return {
            name: value
            for name, value in data.items()
            if value not in (None, {}) and name != "shard" and affects(f"data.{name}") == "rows"
        }

    @property
    def image(self) -> str:
        """The column of the image."""
        return str((self.config.get("data") or {}).get("image", "image"))

    def image_name(self, row: Row) -> str:
        """The name of the row's image in the data, or the row's id where the image has no name."""
        return image_name(row.get(self.image)) or str(row.get("row_id") or "")

    @property
    def shell_path(self) -> str:
        """The folder as a shell argument, relative to the working folder of the run; else its name alone."""
        folder, cwd = self.folder.resolve(), self.cwd
        return shlex.quote(str(folder.relative_to(cwd)) if folder.is_relative_to(cwd) else folder.name)

    @property
    def cwd(self) -> Path:
        """The folder that relative paths of the config refer to."""
        try:
            return Path(str(_yaml(self.folder / ".hydra" / "hydra.yaml").hydra.runtime.cwd))
        except (OmegaConfBaseException, AttributeError):
            return Path(str(self._journal_header.get("cwd") or Path.cwd()))

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The steps of the config, by the column that each writes, with calibrated thresholds."""
        labels = LabelsSettings(**(self.config.get("labels") or {}))
        steps = labels.restrict_steps((self.config.get("pipeline") or {}).get("steps") or {})
        # A calibration overrides the config's threshold.
        calibrated = {name: each["threshold"] for name, each in self.promises.items()}
        return {
            name: step | ({"threshold": calibrated[name]} if name in calibrated else {})
            for name, step in steps.items()
            if isinstance(step, dict)
        }

    @property
    def promises(self) -> dict[str, dict[str, Any]]:
        """By check with a threshold: {threshold, wrong, sentence}; without a promise `wrong` is None."""
        found = self.summary.get("promises")
        return found if isinstance(found, dict) else {}

    def rows(self) -> Iterator[Row]:
        """The rows of `captions.jsonl`; none when there is no such file, or when the last attempt failed."""
        if self.failure or not (self.folder / "captions.jsonl").is_file():
            return
        with (self.folder / "captions.jsonl").open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    where = self.folder / "captions.jsonl"
                    raise FolderError(
                        f"line {number} of {where} is not JSON ({error}); the same command with the same"
                        " output= rewrites it"
                    ) from error
                if isinstance(row, dict):
                    yield row

    def labelable_rows(self) -> Iterator[Row]:
        """Rows of the report that did not fail, to draw labels from. FolderError if they have no `row_id`."""
        for row in islice(self.rows(), MAX_REPORT_ROWS):
            if row.get("row_id") is None:
                raise FolderError(
                    f"{self.folder / 'captions.jsonl'} has no row_id, which labels refer to: an earlier"
                    " version wrote it; run the same command with another output= (equal requests come from"
                    " the cache)"
                )
            if not row.get("error"):
                yield row

    def image_records(self) -> Iterator[tuple[str, str, str]]:
        """The row id, image hash and image stamp of each journal record, empty where not known.

        A later record of a row replaces an earlier one.
        """
        with suppress(OSError), (self.folder / JOURNAL).open("rb") as file:
            for line in file:
                try:
                    # Only the head of the line is parsed: the columns of the steps may be long.
                    record = json.loads(line.partition(b', "input": {')[0] + b"}")
                except ValueError:
                    continue  # a damaged line, or not a row
                if isinstance(record.get("id"), str):
                    yield record["id"], str(record.get("image") or ""), str(record.get("stamp") or "")

    def caption_column(self, row: Row) -> str | None:
        """The column of the final caption: `final_caption`, or the last text that a step wrote."""
        if "final_caption" in row:
            return "final_caption"
        written = [name for name in row if name in self.steps] or [name for name in row if name != "row_id"]
        texts = [name for name in written if isinstance(row[name], str)]
        return texts[-1] if texts else None

    def metrics(self, row: Row) -> Iterator[tuple[str, Pair]]:
        """The row's values of each metric, by the metric's name in the summary."""
        for column in row:
            if column in self._measured:
                yield from measures(column, row[column])

    @cached_property
    def _measured(self) -> set[str]:
        """The columns that metrics come from."""
        return {parts(name)[0] for name in self.summary.get("metrics", {})}

    def numbers(self, row: Row) -> Iterator[tuple[str, Pair]]:
        """The row's values of every number: metrics, the share that each check kept, words."""
        yield from self.metrics(row)
        for column, scores in checks(row):
            if scores:
                yield f"{escaped(column)} kept", (sum(bool(each["kept"]) for each in scores), len(scores))
        caption = self.caption_column(row)
        if caption is not None and isinstance(row[caption], str):
            yield "words", (len(WORD.findall(row[caption])), 1)


def checks(row: Row) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Each check of the row, with its records {text, kept, …}."""
    for column, value in row.items():
        if column.endswith("_scores") and isinstance(value, list):
            yield column.removesuffix("_scores"), [each for each in value if _is_score(each)]


def statements_digest(rows: Iterable[Row], step: str) -> str:
    """A digest of all statements that labels of this step are drawn from, by row id and text."""
    digest = hashlib.sha256()
    for row in rows:
        texts = [score["text"] for name, scores in checks(row) if name == step for score in scores]
        digest.update(json.dumps([row["row_id"], texts]).encode() + b"\n")
    return digest.hexdigest()[:12]


def _is_score(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str) and "kept" in value


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Opens the folder of a run, to read its `rows()`, `summary`, `config` and `overrides`.

    Raises FolderError if the folder holds no run.
    """
    path = Path(folder)
    if not (path / JOURNAL).is_file() and not (path / "summary.json").is_file():
        raise FolderError(f"{path} holds no run: it has neither a {JOURNAL} nor a summary.json")
    return Run(path, path.resolve().name)


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs in these folders, or below them, sorted by name."""
    tops: dict[Path, Path] = {}
    for top in folders:
        if not top.is_dir():
            raise FolderError(f"{str(top)!r} is not a folder; give folders of runs, or of sweeps")
        marks = ["summary.json", JOURNAL, ".hydra"]
        if any((top / mark).exists() for mark in marks):
            below = {top}
        else:
            below = {path.parent for mark in marks for path in top.rglob(mark)}
        tops |= dict.fromkeys(sorted(below, key=lambda path: _natural(str(path))), top)
    names = {
        path: path.resolve().name if path == top else path.relative_to(top).as_posix()
        for path, top in tops.items()
    }
    count = Counter(names.values())
    return [Run(path, name if count[name] == 1 else str(path)) for path, name in names.items()]


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts job 10 after job 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _yaml(path: Path) -> Any:
    """A YAML file; None when it is missing or incomplete (the disk was full)."""
    try:
        return OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
