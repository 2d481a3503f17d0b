"""The command line: `scalecap [run|check|report|compare|calibrate|merge|push|cache|test]`.

Each command has a module of its own; that of `run`, which may be left out, and `check` is `scalecap.cli.app`.

Exit codes: 0 every row done, 3 some rows failed, 1 the run could not be done, 130 interrupted.
"""

import sys
from importlib import import_module

from scalecap import __version__

VERBS = {
    "report": "scalecap.report.__main__",
    "compare": "scalecap.report.comparison",
    "calibrate": "scalecap.calibration.__main__",
    "merge": "scalecap.run.merge",
    "push": "scalecap.report.push",
    "cache": "scalecap.cli.cache",
    "test": "scalecap.cli.cases",
}
"""Each with the module that does it, which is `python -m <module>` too."""


def main() -> int:
    """Run what the command line asks for; the exit code.

    Only what it asks for is imported: a run's modules and Hydra take half a second.
    """
    words = sys.argv[1:]
    if words and words[0] in VERBS:
        sys.argv = [f"scalecap {words[0]}", *words[1:]]
        return import_module(VERBS[words[0]]).main() or 0
    if words and words[0] in ("run", "check"):
        words = [*words[1:], *(["check=true"] if words[0] == "check" else [])]
    if "--version" in words:  # Hydra would tell its own
        print(f"scalecap {__version__}")
        return 0
    if {"--help", "-h"} & set(words):
        print(import_module("scalecap.cli.help").text(words))
        return 0
    code: int = import_module("scalecap.cli.app").main(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
