"""`scalecap --help`: the text of `conf/hydra/help/scalecap.yaml` with the options of each group.

Hydra prints the same, but much slower: it composes a configuration, and copies it for each group.
"""

from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from scalecap.config.settings import CONF


def text(arguments: Sequence[str]) -> str:
    """The help text, with the options in the folder of `--config-dir`, if given."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own: Path | None = parser.parse_known_args(arguments)[0].config_dir
    groups = _groups(CONF, *filter(None, [own]))
    config = OmegaConf.create({"hydra": {"help": OmegaConf.load(CONF / "hydra" / "help" / "scalecap.yaml")}})
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS=groups)


def _groups(*folders: Path) -> str:
    """One line per group: its name and options."""
    options: defaultdict[str, set[str]] = defaultdict(set)
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            options[file.parent.relative_to(folder).as_posix()].add(file.stem)
    groups = sorted(group for group in options if group.partition("/")[0] != "hydra")
    return "".join(f"{group}: {', '.join(sorted(options[group]))}\n" for group in groups)
