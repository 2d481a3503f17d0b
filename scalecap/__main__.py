"""The command line: `scalecap [run|check|report|compare|calibrate|merge|push|cache|test]`.

Each command has its own module; that of `run` (the default) and `check` is `scalecap.cli.app`.

Exit codes: 0 all rows done, 3 some rows failed, 1 the run failed or was stopped, 130 interrupted.
"""

import os
import sys
from difflib import get_close_matches
from importlib import import_module

from scalecap import __version__

COMMANDS = {
    "report": "scalecap.report.__main__",
    "compare": "scalecap.report.comparison",
    "calibrate": "scalecap.calibration.__main__",
    "merge": "scalecap.run.merge",
    "push": "scalecap.report.push",
    "cache": "scalecap.cli.cache",
    "test": "scalecap.cli.cases",
}
"""The module of each command, which can also be run as `python -m <module>`."""


def main() -> int:
    """Runs the command; returns the exit code."""
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(arguments: list[str]) -> int:
    """Only the command's module is imported: Hydra and the modules of a run take half a second."""
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        sys.argv = [f"scalecap {command}", *arguments[1:]]
        return import_module(COMMANDS[command]).main() or 0
    if command in ("run", "check"):
        arguments = [*arguments[1:], *(["check=true"] if command == "check" else [])]
    elif command.isalpha() and (close := get_close_matches(command, [*COMMANDS, "run", "check"])):
        print(f"error: {command}: no such command; did you mean {close[0]!r}?", file=sys.stderr)
        return 1
    if "--version" in arguments:  # Hydra would print its own
        print(f"scalecap {__version__}")
        return 0
    if {"--help", "-h"} & set(arguments):
        print(import_module("scalecap.cli.help").text(arguments))
        return 0
    code: int = import_module("scalecap.cli.app").main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
