"""Each row of the table of faults in `scalecap/run/README.md`: what is kept, what is shown, the exit code."""

import builtins
import errno
import fcntl
import io
import json
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import CODES, fault
from PIL import Image as Pillow
from runs import Command, Rows, captions
from server import Server, storyteller

from scalecap.engines.base import Choose, Chosen, EngineDead, Request
from scalecap.engines.scripted import Scripted
from scalecap.run import watchdog


def errors(folder: str) -> list[dict[str, Any]]:
    return [row["error"] for row in captions(folder) if row["error"]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    monkeypatch.setattr("scalecap.engines.servers._BACKOFF", 0.001)
    monkeypatch.setattr("scalecap.engines.servers._HEALTH_INTERVAL", 0.05)
    server = Server(storyteller)
    server.seconds = 0.005
    yield server
    server.stop()


@pytest.fixture
def run_job(command: Command, server: Server, rows: Rows) -> Command:
    """Runs the main job over six images on the server; the folder is `out`."""

    def run_job(*words: str, count: int = 6) -> int:
        own = ("model=own", "model.vlm.name=m", "engine=openai", f"engine.base_url={server.url}")
        # A server restarted is another connection; a second run in this process must not share it.
        return command(*own, "data=jsonl", rows(count), "output=out", "engine.retries=1", *words)

    return run_job


class Crash(threading.Thread):
    """Stops the server once it got this many requests; it answers none of those that come after them."""

    def __init__(self, server: Server, after: int) -> None:
        super().__init__()
        self.server, self._reached = server, threading.Event()

        def script(request: dict[str, Any]) -> Any:
            if len(server.requests) <= after:
                return storyteller(request)
            self._reached.set()
            return 200, "hang"

        server.script = script
        self.start()

    def run(self) -> None:
        if self._reached.wait(600):
            self.server.stop()
            self.server.script = storyteller


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own; called again with other options it is changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        options = f"remount,{options}" if mounted else options
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"a disk of its own can't be mounted here: {made.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@fault("Unreadable row")
def test_a_row_that_cannot_be_read(typed, rows, tmp_path: Path, codes: set[int]):
    rows(4, broken=(1,))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('\n{"image": \n{"image": "nowhere.png"}')
    assert {typed("data=jsonl", "data.path=rows.jsonl", "output=out")} == codes
    found = errors("out")
    assert [error["kind"] for error in found] == ["unreadable_image", "invalid_json", "missing_file"]
    assert "1.png" in found[0]["message"]
    assert "line 5" in found[1]["message"]
    assert [row["id"] for row in captions("out") if not row["error"]] == [0, 2, 3]


STAGES = """
import time

from scalecap.stages import stage


@stage
def fragile(text: str) -> int:
    return 1 // (len(text) - 31)


@stage
def slow(text: str) -> str:
    time.sleep(0.7)
    return text
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outside module of stages."""
    (tmp_path / "outside_faults.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [
        ("open", errno.ESTALE, "unreadable_image"),
        ("open", errno.EIO, "unreadable_image"),
        ("stat", errno.ESTALE, "missing_file"),
    ],
)
def test_a_network_disk_that_fails_for_one_image(
    typed, rows, monkeypatch, capsys, call: str, code: int, kind: str
):
    """A server's handle is stale, or it can't be read: the row's, not the run's."""
    data, used = rows(3), getattr(os if call == "stat" else io, call)

    def fails(path: Any, *words: Any, **more: Any) -> Any:
        if str(path).endswith("/1.png"):
            raise OSError(code, os.strerror(code), str(path))
        return used(path, *words, **more)

    for module in (os,) if call == "stat" else (io, builtins):
        monkeypatch.setattr(module, call, fails)
    assert typed("data=jsonl", data, "output=out") == 3
    (error,) = errors("out")
    assert error["kind"] == kind
    assert "1.png" in error["message"]
    assert "Traceback" not in capsys.readouterr().err


@fault("Stage error")
def test_a_stage_that_raises(typed, stages, rows, engines, codes: set[int]):
    def says(request: Request) -> str | float:
        if (
            "Describe the picture" in request.prompt.text
            and request.prompt.image.pixels.getpixel((0, 0))[0] == 2
        ):
            return "There is a dog and then a sofa."
        return "There is a dog." if not hasattr(request, "options") else 0.9

    engines["vlm"]._answer = says
    words = (
        "pipeline.imports=[outside_faults]",
        "+pipeline.steps.x={stage: outside_faults/fragile, text: init_caption}",
    )
    assert {typed("data=jsonl", rows(4), "output=out", *words)} == codes
    (error,) = errors("out")
    assert error["step"] == "x"
    assert error["kind"] == "ZeroDivisionError"
    assert error["message"].endswith("(outside_faults.py:9)")
    failed = captions("out")[2]
    assert failed["init_caption"] == "There is a dog and then a sofa."
    assert failed["final_caption"]


@fault("Blocking stage")
def test_a_stage_that_blocks(typed, stages, monkeypatch, capsys, codes: set[int]):
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    words = (
        "pipeline.imports=[outside_faults]",
        "+pipeline.steps.y={stage: outside_faults/slow, text: init_caption}",
        "+pipeline.steps.z={stage: outside_faults/slow, text: init_caption}",
    )
    assert {typed("data.limit=1", "output=out", *words)} == codes
    error = capsys.readouterr().err
    assert error.count("y or z: stage outside_faults/slow blocks the event loop at") == 1
    assert re.search(r"outside_faults\.py:14, .*; move slow work to a thread", error)


def test_a_stage_that_imports_a_large_library_once_is_not_reported(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    (tmp_path / "large_library.py").write_text("import time\ntime.sleep(1)\n")
    (tmp_path / "outside_import.py").write_text(
        "from scalecap import stage\n@stage\ndef lazy(text: str) -> str:\n    import large_library\n"
        "    return text\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    step = "+pipeline.steps.y={stage: outside_import/lazy, text: init_caption}"
    assert typed("data.limit=1", "output=out", "pipeline.imports=[outside_import]", step) == 0
    assert "outside_import/lazy" not in capsys.readouterr().err


@fault("Busy server")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy(run_job, server: Server, status: int, codes: set[int]):
    server.headers = {"Retry-After": "0"}
    tries: Counter[str] = Counter()

    def script(request: dict[str, Any]) -> Any:
        text = json.dumps(request)
        tries[text] += 1
        return storyteller(request) if tries[text] > 3 else (status, {"error": {"message": "busy"}})

    server.script = script
    assert {run_job("engine.retries=6")} == codes
    assert len(captions("out")) == 6


@fault("Garbled reply")
@pytest.mark.parametrize("body", [b"{garbage", b"<html>", "half", "nothing", "reset"])
def test_a_server_whose_first_reply_is_garbled(run_job, server: Server, body: Any, codes: set[int]):
    seen: set[str] = set()

    def script(request: dict[str, Any]) -> Any:
        text = json.dumps(request)
        if text in seen:
            return storyteller(request)
        seen.add(text)
        return 200, body

    server.script = script
    assert {run_job()} == codes
    assert len(captions("out")) == 6


@fault("Failing request")
@pytest.mark.parametrize(
    "answer", [(500, b"oops"), (200, b"{garbage"), (200, "reset"), (200, "hang"), (400, b"no")]
)
def test_a_request_that_always_fails(run_job, server: Server, answer: Any, codes: set[int]):
    first: list[str] = []

    def script(request: dict[str, Any]) -> Any:
        content = request["messages"][-1]["content"]
        shown = content[0]["image_url"]["url"] if isinstance(content, list) else ""
        first.append(shown)
        return answer if shown and shown == next(filter(None, first)) else storyteller(request)

    server.script = script
    words = ("engine.retries=0", f"engine.timeout={3 if answer[1] == 'hang' else 60}")
    assert {run_job(*words)} == codes
    (error,) = errors("out")
    assert (error["step"], error["kind"]) == ("init_caption", "engine")
    assert error["message"]
    server.script = storyteller
    assert run_job(*words) == 0


@fault("Server restart")
def test_a_server_that_restarts(run_job, server: Server, monkeypatch, capsys, codes: set[int]):
    from scalecap.engines.servers import ServerPool

    mark_down = ServerPool.mark_down

    def restart(*given: Any) -> None:
        mark_down(*given)
        crash.join()
        server.start()

    monkeypatch.setattr(ServerPool, "mark_down", restart)
    crash = Crash(server, 20)
    assert {run_job(count=12)} == codes
    assert len(captions("out")) == 12
    assert "waiting up to 600 s" in capsys.readouterr().err


@fault("Lost server")
def test_one_of_several_servers_dies(run_job, server: Server, codes: set[int]):
    others = [Server(storyteller) for _ in range(2)]
    try:
        addresses = f"engine.base_url=[{','.join(each.url for each in (server, *others))}]"
        crash = Crash(server, 20)
        assert {run_job(addresses, count=24)} == codes
        crash.join()
    finally:
        for each in others:
            each.stop()
        server.start()
    assert sorted(row["id"] for row in captions("out")) == list(range(24))
    assert not errors("out")
    _, away = json.loads(Path("out/summary.json").read_text())["notes"]
    assert re.match(rf"{server.url} was away \(once\); others answered \d+ of its requests", away)


@fault("No server")
def test_a_server_that_stays_away(run_job, server: Server, capsys, codes: set[int]):
    crash = Crash(server, 60)
    assert {run_job("engine.timeout=2", "rows_in_flight=2", count=12)} == codes
    crash.join()
    captured = capsys.readouterr()
    assert re.search(r"the server at http://127.* is gone: no answer for 2 s", captured.out)
    assert "output=out" in captured.out  # the command that resumes
    kept = captions("out")
    assert 0 < len(kept) < 12
    assert not errors("out")
    before = len(server.requests)
    server.start()
    assert run_job(count=12) == 0
    again = captions("out")
    assert len(again) == 12
    assert all(row in again for row in kept)  # rows finish in any order
    assert len(server.requests) - before < 12 * 12 - before + 30


@fault("Engine crash")
def test_an_engine_that_dies(typed, engines, answer, capsys, codes: set[int]):
    number = 0

    def script(request: Request) -> Any:
        nonlocal number
        number += 1
        if number > 30:
            raise EngineDead("out of memory")
        return answer(request)

    dying = Scripted(script)
    engines.update(vlm=dying, llm=dying)
    assert {typed("output=out", "rows_in_flight=1")} == codes
    assert "out of memory" in capsys.readouterr().out
    kept = captions("out")
    assert 0 < len(kept) < 24
    assert not errors("out")


@fault("Too many failures")
def test_a_run_in_which_every_row_fails(typed, rows, capsys, codes: set[int]):
    words = ("data=jsonl", rows(40, broken=tuple(range(40))), "rows_in_flight=4")
    assert {typed(*words, "output=out")} == codes
    assert "20 of the first 20 rows failed (max_failures=100%)" in capsys.readouterr().out
    assert 20 <= len(captions("out")) <= 24


@fault("Unanswered checks")
def test_checks_that_are_not_answered(typed, rows, engines, answer, capsys, codes: set[int]):
    def says(request: Request) -> Any:
        return Chosen((0.9, 0.1), mass=1e-6) if isinstance(request, Choose) else answer(request)

    engines["vlm"]._answer = says
    assert {typed("data=jsonl", rows(40), "rows_in_flight=1", "output=out")} == codes
    assert "50 of its first 50 checks are unanswered" in capsys.readouterr().out
    assert len(captions("out")) == 25


@fault("Full disk")
def test_a_full_disk(typed, disk, capsys, codes: set[int]):
    folder = disk("size=64k")
    assert {typed("data.count=40", f"output={folder}/out")} == codes
    error = capsys.readouterr().err
    found = re.search(r"error: can't write .*journal\.jsonl: No space left on device\. The (\d+) rows", error)
    assert found
    assert "Traceback" not in error
    assert "same output= to resume" in error
    disk("size=8m")
    assert typed("data.count=40", f"output={folder}/out") == 0
    resumed = re.search(r"\((\d+) from an earlier run\)", capsys.readouterr().out)
    assert resumed
    # A shorter row that was in flight may have found room after all.
    assert int(found[1]) <= int(resumed[1]) <= int(found[1]) + 2
    assert len(captions(folder / "out")) == 40


@fault("Full cache disk")
def test_a_full_disk_under_the_cache(typed, disk, capsys, codes: set[int]):
    folder = disk("size=160k")
    assert {typed("output=out", f"cache.dir={folder}")} == codes
    error = capsys.readouterr().err
    assert error.count("replies can't be written to") == 1
    assert "disk is full" in error
    assert len(captions("out")) == 24


@fault("Unwritable output")
def test_an_output_that_cannot_be_written(typed, opened, disk, capsys, codes: set[int]):
    folder = disk("size=64k,ro")
    assert {typed(f"output={folder}/out")} == codes
    err = capsys.readouterr().err
    assert re.search(r"error: can't write .*disk/out.*: Read-only file system; give another output=DIR", err)
    assert "Traceback" not in err
    assert not opened


@fault("No file locks")
def test_no_locks(typed, monkeypatch, capsys, codes: set[int]):
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    words = ("data.limit=2", "output=out", "cache=off")
    assert {typed(*words)} == codes
    assert "its file system does not support it" in capsys.readouterr().err
    assert len(captions("out")) == 2


@fault("Data error")
def test_data_that_breaks_in_the_middle(typed, capsys, tmp_path: Path, codes: set[int]):
    import datasets

    (tmp_path / "set").mkdir()
    for shard in range(2):
        images = [Pillow.new("RGB", (30, 30), (shard, number, 0)) for number in range(5)]
        path = tmp_path / "set" / f"train-{shard}.parquet"
        datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image()).to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    words = ("data=hub", "data.path=set", "data.streaming=true", "output=out")
    assert {typed(*words)} == codes
    assert "can't read 'set' beyond its first 5 rows" in capsys.readouterr().out
    assert len(captions("out")) == 5
    path.write_bytes(whole)
    assert typed(*words) == 0
    assert len(captions("out")) == 10
    assert "(5 from an earlier run)" in capsys.readouterr().out


@fault("Damaged file")
def test_damaged_files(typed, engines, answer, tmp_path: Path, codes: set[int]):
    words = ("data.limit=4", "output=out", f"cache.dir={tmp_path}/cache")
    assert typed(*words) == 0
    before = captions("out")
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[2] = b"\xff" * 40
    journal.write_bytes(b"\n".join(lines))
    (cache,) = (tmp_path / "cache").glob("replies-*.sqlite")
    content = bytearray(cache.read_bytes())
    content[-4096:] = bytes(4096)
    cache.write_bytes(content)
    assert {typed(*words)} == codes
    assert captions("out") == before


def test_every_row_is_tested():
    marks = [(Path(__file__).parent / name).read_text() for name in ("test_faults.py", "test_kills.py")]
    assert set(re.findall(r'^@fault\("(.+)"\)$', "".join(marks), re.MULTILINE)) == set(CODES)
