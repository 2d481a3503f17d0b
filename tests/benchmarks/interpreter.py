"""What the interpreter itself takes: memory that must not grow with rows, and CPU time a request.

    python tests/benchmarks/interpreter.py [ROWS …]

runs the default pipeline on a scripted engine, which answers at once, over rows of small
images, each number of rows in a process of its own. CPU time is of the whole process after its start:
reading rows, opening images, every step, the cache of replies, the journal, and the files at the end.
"""

import base64
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from PIL import Image as Pillow

from scalecap.config.compose import from_config
from scalecap.config.settings import CONF
from scalecap.engines.base import Choose, Request
from scalecap.engines.scripted import Scripted
from scalecap.runner import run


class Cost(NamedTuple):
    """Of one run: peak resident memory in MB, requests, CPU milliseconds a request."""

    rows: int
    peak: float
    requests: int
    milliseconds: float


def say(request: Request) -> str | float:
    """Nine requests a row, of which two carry no image and are equal in all rows."""
    text = request.prompt.text
    if isinstance(request, Choose):
        return 0.1 if "cat" in text else 0.9
    if request.prompt.image is None:
        return "Describe more details about the dog." if "Instructions" in text else "A dog, brown."
    return "It is brown." if "more details" in text else "There is a dog. There is a cat."


def an_image(number: int) -> str:
    """A small image of a colour of its own, as a URL."""
    file = io.BytesIO()
    Pillow.new("RGB", (32, 32), tuple(number.to_bytes(3))).save(file, "BMP")
    return "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()


def measure(rows: int, cache: bool, folder: Path) -> Cost:
    """One run in this process."""
    data = folder / "rows.jsonl"
    with data.open("w") as file:
        file.writelines(
            json.dumps({"id": number, "image": an_image(number)}) + "\n" for number in range(rows)
        )
    words = [f"data.path={data}", f"output={folder / 'out'}", f"cache.dir={folder / 'cache'}", "prompts=seed"]
    words += [
        "model=own",
        "model.vlm.name=none",
        "data=jsonl",
        "data.allow_urls=true",
        f"cache={'on' if cache else 'off'}",
        "progress=false",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        settings = from_config(hydra.compose("config", words))
    begun = time.process_time()
    engine = Scripted(say)
    summary = run(settings, engines={"vlm": engine, "llm": engine})
    used = time.process_time() - begun
    assert (summary.done, summary.failed) == (rows, 0)
    requests = summary.usage.total.requests
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Cost(rows, peak, requests, 1000 * used / requests)


def measure_in_process(rows: int, *, cache: bool) -> Cost:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--in", folder, str(rows), str(int(cache))]
        return Cost(*json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main(words: list[str]) -> None:
    if words[:1] == ["--in"]:
        found: Any = measure(int(words[2]), words[3] == "1", Path(words[1]))
        print(json.dumps(found))
        return
    print(f"{'rows':>8} {'cache':>5} {'peak MB':>8} {'requests':>9} {'CPU ms/request':>14}")
    for rows in map(int, words or ["2000", "200000"]):
        for cache in (False, True):
            cost = measure_in_process(rows, cache=cache)
            print(
                f"{cost.rows:8} {'on' if cache else 'off':>5} {cost.peak:8.0f} {cost.requests:9}"
                f" {cost.milliseconds:14.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
