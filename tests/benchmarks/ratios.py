"""All ratios of the docs in one table: other ways to do the same work, over sizes of the caches.

    python tests/benchmarks/ratios.py [--cases 1 2 …] [--rounds 2] [--tiny] [--write FILE]

Each case opens an engine of its own and measures as `throughput.py` does, whose docstring says what the ways
do; *stages* imitates DataFlow-MM, whose own code is not part of this project. With `--tiny` each case is so
small that its times mean nothing: it shows that all of it runs. The whole takes hours on a quiet machine.
"""

import argparse
import asyncio
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from throughput import Result, Work, compare

CASES = (
    Work(images=16, side=2048, seen=1344, kv_images=12, width=4, block=32),
    Work(images=16, side=2048, seen=1040, kv_images=8, width=4, block=32),
    Work(images=10, side=2048, seen=1344, kv_images=5),
    Work(images=16, side=2048, seen=1040, kv_images=4, block=32),
    Work(images=16, side=2048, seen=1040, kv_images=8, block=32),
    Work(images=16, side=2048, seen=1040, kv_images=16, block=32),
    Work(images=200, side=448, kv_images=32),
)
OTHERS = ("stages", "barrier", "bare")


def tiny(work: Work) -> Work:
    """The same with few and small images and short replies."""
    kept = work.kv_images / work.images
    return replace(work, images=4, kv_images=max(1, round(4 * kept)), side=224, seen=224, tokens=2, width=1)


def name(work: Work) -> str:
    seen = min(work.side, work.seen)
    tokens = seen * (seen * 3 // 4) // 28**2
    parameters = {1: "6M", 4: "85M"}[work.width]
    return f"{parameters}, {tokens} tokens, {work.kv_images} of {work.images}"


def line(work: Work, found: Sequence[dict[str, Result]]) -> str:
    """Times as ratios to ours within a round, the median and its range; counts of the last round."""
    cells = [name(work)]
    cells.append(f"{work.images / statistics.median(each['ours'].seconds for each in found):.2f}")
    for way in OTHERS:
        ratios = [each[way].seconds / each["ours"].seconds for each in found]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    counts: tuple[Callable[[Result], int], ...] = (
        lambda way: way.prompt - way.cached,
        lambda way: way.encoded,
        lambda way: way.opened,
    )
    for count in counts:
        values = (count(found[-1][way]) / work.images for way in ("ours", *OTHERS))
        cells.append(" / ".join(f"{each:.0f}" if each >= 100 else f"{each:.1f}" for each in values))
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """What the numbers are measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((each.partition(":")[2].strip() for each in lines if each.startswith("model name")), "")
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}, "
        f"load before {os.getloadavg()[0]:.1f}, torch {version('torch')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=range(1, len(CASES) + 1), help="from 1")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="see that it runs")
    parser.add_argument("--write", type=Path, help="file for the table")
    words = parser.parse_args()
    lines = [
        machine(),
        "",
        f"| case | ours, images/s | {' | '.join(f'{way} / ours' for way in OTHERS)}"
        f" | computed: ours / {' / '.join(OTHERS)} | encoded | opened |",
        "| --- " * (5 + len(OTHERS)) + "|",
    ]
    print("\n".join(lines), flush=True)
    for number in words.cases:
        work = tiny(CASES[number - 1]) if words.tiny else CASES[number - 1]
        lines.append(line(work, asyncio.run(compare(work, words.rounds, OTHERS))))
        print(lines[-1], flush=True)
    if words.write:
        words.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
