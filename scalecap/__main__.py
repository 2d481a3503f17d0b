"""The command line: `scalecap [run|check|report|compare|calibrate|merge|push|cache|test]`.

Of `run`, which may be left out, and `check`, Hydra composes the config and `scalecap.run` does the work; the
others have a module with a `main` of its own.

Exit codes: 0 every row done, 3 some rows failed, 1 the run could not be done, 130 interrupted.
"""

import logging
import os
import sys
from importlib import import_module

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap import __version__, sweep
from scalecap.explain import explain
from scalecap.run import RunError, process_engines
from scalecap.settings import CONF, SettingsError

VERBS = {
    "report": "scalecap.report.__main__",
    "compare": "scalecap.report.comparison",
    "calibrate": "scalecap.calibrate",
    "merge": "scalecap.merge",
    "push": "scalecap.push",
    "cache": "scalecap.cache",
    "test": "scalecap.cases",
}
"""Each with the module that does it, which is `python -m <module>` too."""


def main() -> int:
    """Run what the command line asks for; the exit code."""
    words = sys.argv[1:]
    if words and words[0] in VERBS:
        sys.argv = [f"scalecap {words[0]}", *words[1:]]
        return import_module(VERBS[words[0]]).main() or 0
    if words and words[0] in ("run", "check"):
        words = [*words[1:], *(["check=true"] if words[0] == "check" else [])]
    if "--version" in words:  # Hydra would tell its own
        print(f"scalecap {__version__}")
        return 0
    logging.raiseExceptions = False  # a full disk under the log is told by what can't go on without it
    sweep.begin(words)
    if "check=true" in (word.lower() for word in words):
        # A check leaves nothing behind.
        words += ["hydra.run.dir=.", "hydra/job_logging=disabled"]
    groups = {word.partition("=")[0] for word in words}
    if "model.vlm.name" in groups and "model" not in groups:
        # A name alone is no embedded model, whose group would choose its prompts.
        words.append("model=own")
    sys.argv = ["scalecap", *sweep.arranged(words)]  # the name that usage errors tell
    short = "HYDRA_FULL_ERROR" not in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # lets errors through, where Hydra prints and exits
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(sweep.job)()
    except sweep.Interrupted:
        return 130  # the job has said it
    except KeyboardInterrupt:
        print("Interrupted before the first row; the same command begins again", file=sys.stderr)
        return 130
    except (RunError, SettingsError):
        return 1  # the job has said it
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        if not short:
            raise
        return _complain(error)
    except OSError as error:
        if error.filename is None or not short:
            raise
        return _complain(RunError(f"can't write {error.filename}: {error.strerror}; give another output=DIR"))
    finally:
        if short:
            del os.environ["HYDRA_FULL_ERROR"]
        process_engines.close()
    return sweep.code()


def _complain(error: Exception) -> int:
    print(f"error: {explain(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
