"""What drafts by prompt lookup save the transformers engine: steps of whole runs with and without them.

    python tests/benchmarks/drafts.py [--pipelines default scalecap] [--count 6]

Greedy runs of the embedded model over a few images; each of its steps is one forward pass of all replies
that are being written. Counts are of a run; how many rows meet in a step depends a little on timing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra

from scalecap.config.compose import from_config
from scalecap.config.settings import CONF
from scalecap.engines.compat import patch_libraries
from scalecap.runner import process_engines, run

patch_libraries()  # before transformers is imported

from scalecap.engines.model_runner import ModelRunner  # noqa: E402

COLUMNS = (
    "| pipeline | tokens of a draft | steps | tokens read in them | tokens written | captions as without |"
)


def count(pipeline: str, images: int, most: int) -> tuple[list[str], int, int, int]:
    """The captions file's lines, steps, tokens read in steps and tokens written of one run."""
    steps: list[int] = []
    step = ModelRunner.step

    def counted(network: ModelRunner, rows: Any, tokens: Any, positions: Any) -> Any:
        steps.append(sum(map(len, tokens)))
        return step(network, rows, tokens, positions)

    with tempfile.TemporaryDirectory() as folder:
        words = [f"output={folder}", f"pipeline={pipeline}", f"data.count={images}", "sampling=greedy"]
        words += ["engine=transformers", "cache=off", "report=false", "progress=false"]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            settings = from_config(hydra.compose("config", words))
        with (
            patch.object(ModelRunner, "step", counted),
            patch("scalecap.engines.drafts.MAX_DRAFT_TOKENS", most),
        ):
            summary = run(settings)
        written = summary.usage.total.generated_tokens
        lines = (Path(folder) / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return lines, len(steps), sum(steps), written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pipelines", nargs="+", default=["default", "scalecap"])
    parser.add_argument("--count", type=int, default=6, help="images")
    words = parser.parse_args()
    print(f"{COLUMNS}\n{'| --- ' * 6}|")
    for pipeline in words.pipelines:
        plain: list[str] = []
        for most in (0, 5):
            lines, steps, read, written = count(pipeline, words.count, most)
            plain = plain or lines
            same = "yes" if lines == plain else "no"
            print(f"| {pipeline} | {most} | {steps} | {read} | {written} | {same} |", flush=True)
    process_engines.close()


if __name__ == "__main__":
    main()
