"""Test cases of a pipeline: a row and scripted replies, and the columns they should give, without a model.

They are in the YAML file of the pipeline, next to its steps:

    cases:
      - case: an invented cat is dropped
        row: {}                                # further columns; `image` may be a colour or a path
        replies:                               # by step, in the order of its requests …
          init_caption: There is a dog. There is a cat.
          golden_sentences: {dog: 0.9, cat: 0.1}   # … or by a word of the prompt
        expect:
          golden_sentences: [There is a dog.]

A text is the reply to a request for text; a number is P(yes) of a yes/no check, or for a scored text what the
image adds to the log-probability of each token.

    scalecap test seed my_pipeline.yaml

runs them and prints the differences.
"""

import argparse
import asyncio
import difflib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image as Pillow
from PIL import ImageColor

from scalecap.config.compose import compose, from_config
from scalecap.config.settings import CONF, Settings, SettingsError
from scalecap.data.images import open_image
from scalecap.data.sources import infer_kinds, json_safe
from scalecap.engines.base import Choose, EngineError, Request, Score
from scalecap.engines.scripted import Line, Scripted
from scalecap.interpreter.allowance import Allowance
from scalecap.interpreter.dispatch import Dispatcher, RunUsage, StepClient, StepUsage
from scalecap.interpreter.pipeline import Finished, PipelineError, image_pool
from scalecap.rows import Row
from scalecap.run.check import build_pipeline
from scalecap.text.suggestions import did_you_mean


class CaseError(Exception):
    """A case is invalid; the message names it, the key and the fix."""


@dataclass(frozen=True)
class Case:
    """One row, the scripted replies, and the columns that the steps should write."""

    case: str
    """Its name: what it tests."""
    expect: Mapping[str, Any]
    """Expected value by column; other columns are not compared."""
    row: Mapping[str, Any] = field(default_factory=dict)
    replies: Mapping[str, Any] = field(default_factory=dict)


def read_cases(listed: Any) -> list[Case]:
    """Parses the cases of a YAML file. Raises CaseError."""
    if not isinstance(listed, list):
        raise CaseError(f"cases: expected a list, got {listed!r:.80}")
    known = {"case", "row", "replies", "expect"}
    found = []
    for number, each in enumerate(listed):
        where = f"cases[{number}]"
        if not isinstance(each, Mapping) or not isinstance(each.get("case"), str):
            raise CaseError(f"{where}: expected a mapping with a name under `case:`, got {each!r:.80}")
        for key in each:
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise CaseError(f"{where} ({each['case']}): no such key {key!r}{hint}")
        for key in known - {"case"}:
            if not isinstance(each.get(key, {}), Mapping):
                raise CaseError(f"{where} ({each['case']}): {key}: expected a mapping, got {each[key]!r:.80}")
        if not each.get("expect"):
            raise CaseError(f"{where} ({each['case']}): nothing is expected; add columns under `expect:`")
        found.append(Case(**{str(key): value for key, value in each.items()}))
    return found


def run_case(case: Case, settings: Settings) -> list[str]:
    """Runs the case; returns the differences from what it expects, one message per column.

    Raises:
        CaseError: it names an unknown step or column.
        PipelineError: the pipeline is invalid.
    """
    given = {name: value for name, value in case.row.items() if name != "image"}
    offered = {"image": "any", **infer_kinds([given])}
    pipeline = build_pipeline(settings, offered)
    callers = [step.name for step in pipeline.steps if step.role]
    for name in case.replies:
        if name not in callers:
            hint = did_you_mean(name, callers)
            raise CaseError(f"{case.case}: replies: no step {name!r} calls a model{hint}")
    columns = [*offered, *pipeline.writers, "error", "flags"]
    for name in case.expect:
        if name not in columns:
            raise CaseError(f"{case.case}: expect: no column {name!r}{did_you_mean(name, columns)}")
    script = Script(case.replies, settings)
    row = Row(0, given, partial(_image, case.row.get("image", "gray")))
    with image_pool() as images:
        finished = asyncio.run(pipeline.run_row(row, script, images))  # type: ignore[arg-type]
    return list(_differences(case, finished, script))


def _image(cell: Any) -> Any:
    """A small image of one colour, or the image at a path."""
    with suppress(ValueError):
        cell = Pillow.new("RGB", (28, 28), ImageColor.getrgb(str(cell)))
    return open_image(cell, folders=[Path.cwd()])


class Script:
    """Stands in for the dispatcher: each step has its own scripted replies."""

    def __init__(self, replies: Mapping[str, Any], settings: Settings) -> None:
        self._settings = settings
        self.unused: dict[str, list[Any]] = {}
        """By step: replies that no request used, or words that were in no prompt."""
        self._steps: dict[str, Dispatcher] = {}
        for step, given in replies.items():
            if isinstance(given, Mapping):
                answer = self._by_word(step, given)
            else:
                answer = self._in_order(step, given if isinstance(given, list) else [given])
            self._steps[step] = self._dispatcher(answer)

    def client(
        self, step: str, flag: Callable[[str], None], row: StepUsage, allowance: Allowance
    ) -> StepClient:
        """As `Dispatcher.client`."""
        return StepClient(self._steps.get(step) or self._dispatcher(_no_reply), step, flag, row, allowance)

    def without_images(self) -> AbstractContextManager[None]:
        """As `Dispatcher.without_images`; there is one row."""
        return nullcontext()

    def _dispatcher(self, answer: Callable[[Request], Line]) -> Dispatcher:
        engine = Scripted(answer)
        roles = {"vlm": engine, "llm": engine, "judge": engine}
        settings = self._settings
        return Dispatcher(roles, None, settings.sampling, settings.seed, RunUsage(), settings.min_mass)

    def _in_order(self, step: str, lines: Sequence[Any]) -> Callable[[Request], Line]:
        unused = self.unused[step] = list(lines)

        def answer(request: Request) -> Line:
            if not unused:
                count = f"more requests than the case has replies ({len(lines)})"
                raise EngineError(f"{count}: {_shown(request)}")
            return _line(unused.pop(0), request)

        return answer

    def _by_word(self, step: str, replies: Mapping[str, Any]) -> Callable[[Request], Line]:
        unused = self.unused[step] = list(replies)

        def answer(request: Request) -> Line:
            text = f"{request.prompt.text} {request.text if isinstance(request, Score) else ''}"
            for word, reply in replies.items():
                if str(word) in text:
                    if word in unused:
                        unused.remove(word)
                    return _line(reply, request)
            raise EngineError(f"none of the words {', '.join(map(str, replies))} is in {_shown(request)}")

        return answer


def _no_reply(request: Request) -> Line:
    raise EngineError(f"the case has no reply for this step: {_shown(request)}")


def _shown(request: Request) -> str:
    return repr(request.prompt.text if len(request.prompt.text) <= 200 else request.prompt.text[-200:])


def _line(reply: Any, request: Request) -> Line:
    """The reply in the form of the scripted engine."""
    if isinstance(request, Score) and isinstance(reply, int | float):
        return float(reply) if request.prompt.image else 0.0
    if isinstance(request, Choose) and isinstance(reply, bool):  # YAML reads a bare yes as true
        return request.options[0 if reply else 1]
    return float(reply) if isinstance(reply, int | float) and not isinstance(reply, bool) else reply


def _differences(case: Case, finished: Finished, script: Script) -> Iterator[str]:
    got = finished.columns | {"error": finished.error, "flags": finished.flags}
    if finished.error and "error" not in case.expect:
        yield f"{finished.error['step']}: {finished.error['message']}"
    for column, expected in case.expect.items():
        if column not in got:
            yield f"{column}: was not written"
        elif got[column] != expected:
            differing = difflib.ndiff(_lines(expected), _lines(got[column]))
            yield "\n  ".join([f"{column}: - expected, + got", *differing])
    for step, unused in script.unused.items():
        if unused and not finished.error:
            yield f"{step}: unused replies: {', '.join(map(repr, unused))}"


def _lines(value: Any) -> list[str]:
    """The value as YAML, one line per item."""
    text: str = yaml.safe_dump(json_safe(value), allow_unicode=True, width=10_000, sort_keys=False)
    return [line for line in text.splitlines() if line != "..."]


def pipeline_settings(name: str, overrides: Sequence[str], own: Sequence[Path]) -> Settings:
    """The settings of a pipeline: an option of the group, or any YAML file. Raises SettingsError.

    Args:
        own: folders of the user's own YAML files.
    """
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        return from_config(compose([f"pipeline={name}", *overrides, "output=."], config_dirs=own)[0])
    if not file.is_file():
        raise SettingsError(f"no such file: {name}; give a YAML file or the name of a pipeline")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pipeline" / "tested.yaml"  # the file may have the name of an option
        copy.parent.mkdir()
        shutil.copy(file, copy)
        beside = [file.absolute().parent.parent] if file.absolute().parent.name == "pipeline" else []
        words = ["pipeline=tested", *overrides, "output=."]
        try:
            return from_config(compose(words, config_dirs=[folder, *own, *beside])[0])
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(copy), name)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """`scalecap test`; returns 0 when all cases pass, 1 when one fails or is invalid."""
    parser = argparse.ArgumentParser(
        prog="scalecap test", description="Run the test cases of pipelines on scripted replies."
    )
    parser.add_argument(
        "pipelines", nargs="*", help="options of pipeline=, or YAML files (default: all options)"
    )
    parser.add_argument("--config-dir", type=Path, help="folder of your own YAML files")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override")
    options = parser.parse_args(arguments)
    own = [options.config_dir.expanduser()] if options.config_dir else []
    shipped = sorted(path.stem for folder in (CONF, *own) for path in folder.glob("pipeline/*.yaml"))
    names = options.pipelines or shipped
    passed = failed = 0
    for name in names:
        try:
            settings = pipeline_settings(name, options.set, own)
            cases = read_cases(settings.pipeline.cases)
            if not cases and options.pipelines:
                print(f"{name}: no cases; add some under `cases:`")
            for case in cases:
                if problems := run_case(case, settings):
                    failed += 1
                    print(f"FAILED {name}: {case.case}")
                    for problem in problems:
                        print("  " + problem.replace("\n", "\n  "))
                else:
                    passed += 1
                    print(f"ok     {name}: {case.case}")
        except (SettingsError, CaseError, PipelineError) as error:
            failed += 1
            print(f"FAILED {name}: {error}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
