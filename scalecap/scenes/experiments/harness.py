"""Shared by the experiments: runs on the embedded world, command lines, plots."""

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalecap.config.compose import compose, from_config
from scalecap.engines.base import Engine
from scalecap.run.summary import Summary
from scalecap.runner import run


def caption_rows(
    overrides: Sequence[str], engine: Engine | None = None
) -> tuple[list[dict[str, Any]], Summary]:
    """Runs a pipeline in float32 in a temporary folder.

    Args:
        engine: used for all roles in place of the configured one.

    Returns:
        The rows of `captions.jsonl`, and the run's summary.
    """
    engines = {"vlm": engine, "llm": engine} if engine else None
    with tempfile.TemporaryDirectory() as output:
        given = [*overrides, f"output={output}", "model.vlm.dtype=float32", "report=false"]
        summary = run(from_config(compose(given)[0]), engines=engines)
        lines = (Path(output) / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], summary


def parse_arguments(
    name: str, description: str | None, *, count: int, seed: int, draws: int | None = None
) -> argparse.Namespace:
    """Parses the command line of an experiment on unseen scenes that writes a page and a plot, and starts
    logging. The arguments are the defaults; an experiment without `draws` has no such option."""
    parser = argparse.ArgumentParser(f"python -m scalecap.scenes.experiments.{name}", description=description)
    parser.add_argument("folder", type=Path, help="output folder, also of cached replies")
    parser.add_argument("--count", type=int, default=count, help="number of scenes")
    parser.add_argument("--seed", type=int, default=seed, help="seed of the scenes")
    if draws is not None:
        parser.add_argument("--draws", type=int, default=draws, help="samples per number of labels")
    arguments = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error('the plot needs matplotlib: pip install "scalecap[dev]"')
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return arguments


def svg_pyplot() -> Any:
    """`matplotlib.pyplot` configured for reproducible SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scalecap"
    from matplotlib import pyplot

    return pyplot
