"""A run over servers in processes of their own, one of which is killed in mid-run and started again."""

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server import digest, reserve_port

pytestmark = pytest.mark.slow
CONCURRENCY = 4
SERVE = """
import itertools, json, sys
from server import Server, storyteller

port, answers = map(int, sys.argv[1:])
numbers = itertools.count()

def script(request):
    print(json.dumps(request), flush=True)
    return storyteller(request) if next(numbers) < answers else (200, "hang")

print(Server(script, port).url, flush=True)
"""


class Served:
    """A server's process, and the requests it got."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self._reserved = reserve_port()
        self.begin()

    def begin(self, answers: int = 10**6) -> None:
        """Starts it; after so many answers it gives no more."""
        command = [sys.executable, "-c", SERVE, str(self._reserved.getsockname()[1]), str(answers)]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        while not line.startswith("http"):  # a client that waits for the server may come before its address
            self.requests.append(json.loads(line))
            line = self.process.stdout.readline()
        self.url = line.strip()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, lines: Any) -> None:
        self.requests.extend(map(json.loads, lines))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def images(self) -> list[str]:
        """The image of each request that showed one."""
        contents = [request["messages"][-1]["content"] for request in self.requests]
        return [each[0]["image_url"]["url"] for each in contents if isinstance(each, list)]


@pytest.fixture
def servers() -> Iterator[list[Served]]:
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    servers = [Served() for _ in range(3)]
    yield servers
    for server in servers:
        server.kill()


def test_every_row_is_done_once_and_other_servers_keep_their_images(
    servers: list[Served], rows: Callable[..., str], tmp_path: Path
):
    addresses = f"engine.base_url=[{','.join(server.url for server in servers)}]"
    words = ["model=own", "model.vlm.name=m", "engine=openai", addresses, "data=jsonl", rows(40)]
    words += ["progress=false", f"engine.concurrency={CONCURRENCY}"]

    def begin(name: str) -> "subprocess.Popen[str]":
        own = [f"output={tmp_path / name}", f"cache.dir={tmp_path / name}-cache"]
        command = [sys.executable, "-m", "scalecap", *words, *own]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(process: "subprocess.Popen[str]") -> str:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        return output

    def requests() -> Counter[str]:
        return Counter(digest(each) for server in servers for each in server.requests)

    finish(begin("whole"))
    whole = requests()
    assert set(whole.values()) == {1}
    homes = {image: number for number, each in enumerate(servers) for image in each.images()}
    assert len(homes) == sum(len(set(server.images())) for server in servers) == 40
    servers[0].kill()
    servers[0].begin(answers=60)  # whoever kills it may be slow
    for server in servers:
        server.requests.clear()

    def wait_for(requests: float, *servers: Served) -> None:
        while sum(len(server.requests) for server in servers) < requests:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)

    process = begin("killed")
    wait_for(40, servers[0])
    servers[0].kill()
    wait_for(0.6 * whole.total(), *servers)
    servers[0].begin()
    output = finish(process)
    for server in servers:
        server.kill()

    captions = [(tmp_path / name / "captions.jsonl").read_bytes() for name in ("whole", "killed")]
    assert captions[0] == captions[1]
    again = requests()
    assert again.keys() == whole.keys()
    assert again.total() - whole.total() <= CONCURRENCY  # what the server had in flight when it was killed
    elsewhere: defaultdict[int, int] = defaultdict(int)
    for number, server in enumerate(servers):
        for image in server.images():
            elsewhere[homes[image]] += homes[image] != number
    assert elsewhere[0] > 0
    assert elsewhere[1] == elsewhere[2] == 0
    answered, away = json.loads((tmp_path / "killed" / "summary.json").read_text())["notes"]
    # A fast machine restarts it before the first health check.
    seen = r"\((once|less than one health check)\)"
    assert re.match(rf"{servers[0].url} was away {seen}; others answered \d+ of its requests", away)
    assert away in output
    assert answered.startswith("Requests answered: ")
