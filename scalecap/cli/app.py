"""The commands `run` and `check`: Hydra composes the config, `scalecap.cli.sweep.job` does the work."""

import logging
import os
import re
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap.cli import sweep
from scalecap.config.compose import with_model_group
from scalecap.config.errors import explain
from scalecap.config.settings import CONF, SettingsError
from scalecap.runner import RunError, process_engines


def main(arguments: Sequence[str]) -> int:
    """Runs or checks, as the arguments say; returns the exit code."""
    logging.raiseExceptions = False  # a disk full under the log is reported by what fails without it
    sweep.start(arguments)
    overrides = with_model_group([*map(_expand_home, arguments)])
    if _is_check(arguments):
        # A check writes no file: Hydra must neither create the run's folder nor a log.
        overrides += ["hydra.run.dir=.", "hydra/job_logging=disabled"]
    sys.argv = ["scalecap", *sweep.order_overrides(overrides)]  # the program name in usage errors
    short = "HYDRA_FULL_ERROR" not in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raises errors, where Hydra would print and exit
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(sweep.job)()
    except sweep.Interrupted:
        return 130  # the job has reported it
    except KeyboardInterrupt as error:
        print(str(error) or "Interrupted before the first row; run the same command again", file=sys.stderr)
        return 130
    except (RunError, SettingsError):
        return 1  # the job has reported it
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        if not short:
            raise
        return _print_error(error)
    except OSError as error:
        if error.filename is None or not short:
            raise
        return _print_error(
            RunError(f"can't write {error.filename}: {error.strerror}; give another output=DIR")
        )
    finally:
        if short:
            del os.environ["HYDRA_FULL_ERROR"]
        process_engines.close()
    return sweep.exit_code()


def _expand_home(argument: str) -> str:
    """`data.path=~/x` with the home folder, which shells leave to the program."""
    return re.sub(r"(^[^=]+=[\"']?)~(?=/)", lambda found: found[1] + os.path.expanduser("~"), argument)


def _is_check(arguments: Sequence[str]) -> bool:
    """Whether `check=true` (or yes, on, 1) is among the overrides; the last one counts."""
    values = [each.partition("=")[2] for each in arguments if each.lstrip("+").startswith("check=")]
    return bool(values) and values[-1].strip("'\"").lower() in ("true", "yes", "on", "1", "y", "t")


def _print_error(error: Exception) -> int:
    print(f"error: {explain(error)}", file=sys.stderr)
    return 1
