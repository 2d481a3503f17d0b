"""The commands `run` and `check`: Hydra composes the config, `scalecap.cli.sweep.job` does the work."""

import logging
import os
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap.cli import sweep
from scalecap.config.errors import explain
from scalecap.config.settings import CONF, SettingsError
from scalecap.runner import RunError, process_engines


def main(words: Sequence[str]) -> int:
    """Run what these words ask for; the exit code."""
    words = list(words)
    logging.raiseExceptions = False  # a full disk under the log is told by what can't go on without it
    sweep.start(words)
    if "check=true" in (word.lower() for word in words):
        # A check leaves nothing behind.
        words += ["hydra.run.dir=.", "hydra/job_logging=disabled"]
    groups = {word.partition("=")[0] for word in words}
    if "model.vlm.name" in groups and "model" not in groups:
        # A name alone is no embedded model, whose group would choose its prompts.
        words.append("model=own")
    sys.argv = ["scalecap", *sweep.order_overrides(words)]  # the name that usage errors tell
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
    return sweep.exit_code()


def _complain(error: Exception) -> int:
    print(f"error: {explain(error)}", file=sys.stderr)
    return 1
