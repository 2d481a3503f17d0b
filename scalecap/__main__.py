"""The command line: Hydra composes the config, `scalecap.run` does the work.

Exit codes: 0 every row done, 3 some rows failed, 1 the run could not be done, 130 interrupted.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from scalecap.nearest import nearest
from scalecap.run import RunError, plan, process_engines, run
from scalecap.settings import CONF, SettingsError, from_config, schema


def main() -> int:
    """Run what the command line asks for; the exit code."""
    codes: list[int] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def job(config: DictConfig) -> None:
        """One run; a sweep calls it once a job, and goes on when one fails."""
        try:
            codes.append(_job(config))
        except (RunError, SettingsError, OmegaConfBaseException) as error:
            codes.append(_complain(error))

    if "check=true" in (argument.lower() for argument in sys.argv):
        # A check leaves nothing behind, and keeps the record of the run whose folder it names.
        nothing = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
        sys.argv = [*sys.argv, *nothing]
    groups = {argument.partition("=")[0] for argument in sys.argv}
    if "model.vlm.name" in groups and "model" not in groups:
        # A name alone is no embedded model, whose group would choose its prompts.
        sys.argv = [*sys.argv, "model=own"]
    short = "HYDRA_FULL_ERROR" not in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # lets errors through, where Hydra prints and exits
    try:
        job()
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException) as error:
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
    return max(codes, default=0, key=[0, 3, 1].index)


def _job(config: DictConfig) -> int:
    """One run and its last screen; the exit code. KeyboardInterrupt ends a sweep."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN and any(each.startswith("output=") for each in job.overrides.task):
        raise SettingsError("output= names the folder of a single run; a sweep's is hydra.sweep.dir=DIR")
    settings = from_config(config)
    settings.output = job.runtime.output_dir
    if settings.check:
        print(plan(settings))
        return 0
    summary = run(settings, command=shlex.join(["python", "-m", "scalecap", *sys.argv[1:]]))
    print(summary.screen())
    if summary.status == "interrupted":
        raise KeyboardInterrupt
    return summary.exit_code


def _complain(error: Exception) -> int:
    print(f"error: {explain(error)}", file=sys.stderr)
    return 1


def explain(error: BaseException) -> str:
    """The error of a config in one line or a few: the key at fault and the nearest valid ones."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, error.options)}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    text = "\n".join(str(each) for each in _causes(error))
    if found := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"${{{found[1]}}}: no such key; {_nearest_key(found[1])}"
    key = ""
    for pattern in (r"Could not override '([^'@]+)", r"full_key: (\S+)"):
        if not key and (found := re.search(pattern, text)):
            key = found[1]
    if found := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return f"{key if key.endswith('.' + found[1]) else found[1]}=… must be given"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text.splitlines()[0]}; quote what holds signs: 'key=\"value\"'"
    if key in set(_groups(CONF)) and "No match in the defaults list" in text:
        return f"{key}: not a choice here; it goes with {_owners(key)}"
    if key and re.search(r"not in|No match in the defaults list", text):
        return f"{key}: no such {'group' if '/' in key else 'key'}; {_nearest_key(key)}"
    if key and (found := re.search(r"^Value '.*", text, re.MULTILINE)):
        return f"{key}: {found[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "_type=" not in line]
    return "\n  ".join(dict.fromkeys(lines))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _nearest_key(key: str) -> str:
    """The nearest valid keys, or groups when it has a slash; when none is near, those beside it."""
    groups = list(_groups(CONF))
    valid = groups if "/" in key else [*_keys(schema()), *(group.replace("/", ".") for group in groups)]
    close = nearest(key, set(valid))
    if close.startswith("nearest"):
        return close
    above = key.rpartition(".")[0]
    beside = {name for name in valid if name.rpartition(".")[0] == above}
    return nearest(key, beside or {name for name in valid if "." not in name})


def _owners(group: str) -> str:
    """The options that have a group of their own beneath them, as they are typed."""
    above, _, name = group.rpartition("/")
    files = [
        file for file in sorted((CONF / above).glob("*.yaml")) if f"- {name}:" in file.read_text("utf-8")
    ]
    return " or ".join(f"{above}={file.stem}" for file in files)


def _keys(node: DictConfig, above: str = "") -> Iterator[str]:
    """Dotted names of all keys."""
    for name in map(str, node):
        yield above + name
        if isinstance(node._get_node(name), DictConfig):
            yield from _keys(node[name], f"{above}{name}.")


def _groups(folder: Path) -> Iterator[str]:
    """Names of all config groups."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and "hydra" not in path.relative_to(folder).parts:
            yield path.relative_to(folder).as_posix()


if __name__ == "__main__":
    sys.exit(main())
