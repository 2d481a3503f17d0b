"""What `scalecap --help` prints: the text of `conf/hydra/help/scalecap.yaml` with the options of each group.

Hydra would print the same, but composes a configuration first, and copies it for each group that it lists.
"""

from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from scalecap.config.settings import CONF


def text(words: Sequence[str]) -> str:
    """The help; options of the folder that `--config-dir` among the words names are listed, too."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own: Path | None = parser.parse_known_args(words)[0].config_dir
    groups = _groups(CONF, *filter(None, [own]))
    config = OmegaConf.create({"hydra": {"help": OmegaConf.load(CONF / "hydra" / "help" / "scalecap.yaml")}})
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS=groups)


def _groups(*folders: Path) -> str:
    """A line for each group: its name and its options."""
    options: defaultdict[str, set[str]] = defaultdict(set)
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            options[file.parent.relative_to(folder).as_posix()].add(file.stem)
    groups = sorted(group for group in options if group.partition("/")[0] != "hydra")
    return "".join(f"{group}: {', '.join(sorted(options[group]))}\n" for group in groups)
