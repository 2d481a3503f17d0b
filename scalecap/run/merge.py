"""Merges the runs of shards into one run.

    scalecap merge runs/shards --to runs/whole

reads the folders of runs over `data.shard=0/4` to `3/4` (or a folder that contains them) and writes one run
with their rows in the order of the data, as if it had been a single run. Rows are copied one by one, so
memory does not grow with their number.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap.config.effects import config_differences
from scalecap.config.exports import WriteSettings
from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.seen import Seen
from scalecap.data.shard import Shard, parse_shard
from scalecap.data.sources import open_source, rows_until_error
from scalecap.interpreter.binding import PipelineError
from scalecap.interpreter.dispatch import StepUsage
from scalecap.interpreter.pipeline import Pipeline
from scalecap.rows import Record
from scalecap.run.check import check_output
from scalecap.run.journal import JOURNAL, Journal, JournalError
from scalecap.run.outputs import write
from scalecap.run.summary import Summary

MAX_LISTED_SHARDS = 20
"""Shards that a message lists by name."""


class MergeError(Exception):
    """The folders are not the shards of one run; the message names them and the fix."""


class Part(NamedTuple):
    """The run of one shard."""

    folder: Path
    shard: Shard
    journal: Journal


def merge(folders: Sequence[Path], to: Path, *, command: str = "") -> Summary:
    """Merges the runs of shards into a new run's folder.

    Raises:
        MergeError: a shard is missing, repeated or not finished, configs differ, or a row is missing.
        DataError: images are needed (as with `write.image=bytes`) and the data can't be opened, or `to` has
            files of that name that scalecap did not write.
        JournalError: a folder holds no run or one that is being written, or `to` can't be written.
    """
    with ExitStack() as stack:
        parts = [_part(each, stack) for each in _runs(folders)]
        config = _shared_config(parts)
        _check_shards(parts)
        summary = _summary(parts, to, command)
        steps = config["pipeline"]["steps"]
        pipeline = Pipeline.build(steps, None, imports=config["pipeline"]["imports"])
        wanted = _write_settings(parts[0])
        check_output(to, wanted)
        whole = stack.enter_context(Journal(to, config, cwd=parts[0].journal.cwd))
        if len(whole.entries):
            raise MergeError(f"{to} already holds a run; give another --to=DIR")
        rows = sum(part.journal.complete or 0 for part in parts)
        for record in _merged(parts, rows):
            whole.append(record)
        whole.finish(rows)
        data = DataSettings(**config["data"])
        write(
            pipeline,
            whole,
            whole.entries,
            summary,
            wanted,
            image=data.image,
            data=rows_until_error(open_source(data)) if wanted.needs_images else None,
        )
        summary.write()
    return summary


def _merged(parts: Sequence[Part], rows: int) -> Iterator[Record]:
    """The records of all shards in the order of the data; each journal is read once."""
    shards = [
        (part, part.journal.records(range(part.shard.number, rows, part.shard.of)))
        for part in sorted(parts, key=lambda part: part.shard)
    ]
    seen = Seen()
    for index in range(rows):
        part, records = shards[index % len(shards)]
        record = next(records, None)
        if record is None or record["index"] != index:
            raise MergeError(
                f"row {index} is missing in {part.folder}, whose journal is damaged; run its command again"
            )
        if record.get("id") is not None and not seen.add(record["id"]):
            raise MergeError(
                f"row {index} of {part.folder} has the id {record['id']!r} of a row before it: the data"
                " changed between the runs of the shards; resume each of them first"
            )
        yield record


def _runs(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold a run, here or below."""
    found = []
    for top in folders:
        below = [top] if (top / JOURNAL).exists() else []
        below = below or sorted(path.parent for path in top.rglob(JOURNAL))
        if not below:
            raise MergeError(f"{top} holds no run: there is no {JOURNAL} in it or below it")
        found += below
    return list(dict.fromkeys(found))


def _part(folder: Path, stack: ExitStack) -> Part:
    journal = stack.enter_context(Journal(folder, None))
    text = journal.config["data"].get("shard")
    if text is None:
        raise MergeError(f"{folder} is not a shard: its run had no data.shard=NUMBER/COUNT")
    return Part(folder, parse_shard(text), journal)


def _shared_config(parts: Sequence[Part]) -> dict[str, Any]:
    """The config that all shards share, as one of the whole data."""
    first = parts[0]
    for part in parts:
        if part.journal.mixed:
            raise MergeError(f"{part.folder} has rows of several configs (resume=force)")
        if changes := config_differences(_whole(first.journal.config), _whole(part.journal.config)):
            raise MergeError(f"{first.folder} and {part.folder} had different configs ({changes})")
    return _whole(first.journal.config)


def _write_settings(part: Part) -> WriteSettings:
    """The `write` settings of a shard; the defaults where its config can't be read."""
    try:
        given = OmegaConf.load(part.folder / ".hydra" / "config.yaml").write
        wanted = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(WriteSettings), given))
    except (OSError, YAMLError, OmegaConfBaseException):
        return WriteSettings()
    assert isinstance(wanted, WriteSettings)
    return wanted


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "data": {**config["data"], "shard": None}}


def _check_shards(parts: Sequence[Part]) -> None:
    """Checks that each shard is there once, and finished."""
    by_shard: dict[Shard, Path] = {}
    of = parts[0].shard.of
    for part in parts:
        if part.shard.of != of:
            raise MergeError(f"{parts[0].folder} is one of {of} shards, {part.folder} of {part.shard.of}")
        if part.shard in by_shard:
            raise MergeError(f"shard {part.shard} is repeated: {by_shard[part.shard]} and {part.folder}")
        by_shard[part.shard] = part.folder
    missing = [shard for number in range(of) if (shard := Shard(number, of)) not in by_shard]
    if missing:
        listed = ", ".join(map(str, missing[:MAX_LISTED_SHARDS]))
        more = " …" if len(missing) > MAX_LISTED_SHARDS else ""
        raise MergeError(f"{len(missing)} of {of} shards are missing: {listed}{more}")
    unfinished = [f"{part.shard} in {part.folder}" for part in parts if not part.journal.ended]
    if unfinished:
        raise MergeError(f"not finished, resume first: {', '.join(unfinished[:MAX_LISTED_SHARDS])}")
    counts = [part.journal.complete or 0 for part in sorted(parts, key=lambda part: part.shard)]
    if counts != sorted(counts, reverse=True) or counts[0] - counts[-1] > 1:
        rows = ", ".join(map(str, counts[:MAX_LISTED_SHARDS]))
        raise MergeError(
            f"shards of one data set differ by at most one row, these have {rows}: did data.limit differ?"
        )


def _summary(parts: Sequence[Part], to: Path, command: str) -> Summary:
    """Usage and seconds of all shards together, and their notes."""
    summary = Summary(to, command)
    notes: dict[str, None] = {}
    for part in parts:
        path = part.folder / "summary.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for step, count in content["steps"].items():
                own = {each.name: count[each.name] for each in fields(StepUsage) if each.name in count}
                summary.usage.steps[step] += StepUsage(**own | {"flags": Counter(count.get("flags", {}))})
            for phase, value in content["seconds"].items():
                summary.seconds[phase] = summary.seconds.get(phase, 0.0) + value
            notes |= dict.fromkeys(content["notes"])
            summary.models |= content["models"]
            summary.promises = content.get("promises", {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MergeError(
                f"{path} can't be read ({error}); the command of this shard rewrites it"
            ) from error
    joined = f"Merged from {len(parts)} shards; seconds are their sum."
    summary.notes = [*notes, f"{joined} The last one's command: {content['command']}"]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap merge", description="Merge the runs of data.shard=0/4 to 3/4 into one run."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="folders of the shards, or one that contains them"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of the merged run")
    arguments = parser.parse_args()
    command = shlex.join(["python", "-m", "scalecap.run.merge", *sys.argv[1:]])
    try:
        summary = merge(arguments.runs, arguments.to, command=command)
    except (MergeError, JournalError, PipelineError, DataError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(summary.screen())
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    main()
