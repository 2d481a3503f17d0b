"""A fake server with OpenAI's API, with scripted responses and faults."""

import contextlib
import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scalecap.engines.completions import PROBE
from scalecap.engines.settings import EngineSettings, ModelSettings

Answer = tuple[int, Any]
"""Status and body: JSON, raw bytes, or one of the faults `nothing`, `half`, `reset`, `hang`."""


def reserve_port(port: int = 0) -> socket.socket:
    """Keeps a port, 0 for any, from being given to others while its server is down; does not listen."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server's own socket has it
    reserved.bind(("127.0.0.1", port))
    return reserved


class _Listening(ThreadingHTTPServer):
    request_queue_size = 128  # simultaneous connections


class Server:
    """Answers chat completions by `script`, or from the list `answers`, whose last entry is repeated."""

    def __init__(self, script: Callable[[dict[str, Any]], Answer] | None = None, port: int = 0) -> None:
        self.answers: list[Answer] = [(200, completion("A cat."))]
        self.script = script or (lambda _: self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        self.headers: dict[str, str] = {}
        """Sent with 429."""
        self.probe: Answer | Callable[[dict[str, Any]], Answer] = (
            200,
            completion("Yes", top={"Yes": 0.9, "No": 0.1}),
        )
        """The answer to the engine's probe, which is not recorded in `requests`."""
        self.models: Answer = (200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        self.seconds = 0.02
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.max_in_flight = self._in_flight = 0
        self._lock = threading.Lock()
        self._reserved = reserve_port(port)
        self._port = self._reserved.getsockname()[1]
        self._engines: list[Any] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listens, on the same port as before."""
        self._gone = threading.Event()
        self._server = _Listening(("127.0.0.1", self._port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Closes the port; requests in flight lose their connections."""
        self._gone.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    async def close(self) -> None:
        """Stops, after closing what `connect` opened."""
        for engine in self._engines:
            await engine.close()
        self.stop()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server, gone = self, self._gone

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.keys.append(self.headers["Authorization"])
                self.reply(*server.models)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if request["messages"][-1]["content"] == PROBE.text:
                    self.reply(*(server.probe(request) if callable(server.probe) else server.probe))
                    return
                with server._lock:
                    server._in_flight += 1
                    server.max_in_flight = max(server.max_in_flight, server._in_flight)
                    server.requests.append(request)
                    answer = server.script(request)
                time.sleep(server.seconds)
                with server._lock:
                    server._in_flight -= 1
                if not gone.is_set():
                    self.reply(*answer)

            def reply(self, status: int, body: Any) -> None:
                if body == "nothing":
                    return
                if body == "hang":
                    gone.wait(600)
                    return
                if body == "reset":
                    self.connection.shutdown(2)
                    return
                half = body == "half"
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (server.headers if status == 429 else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw) * (1 + half)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                """Logs nothing."""

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # of a client that was killed
                    super().handle()

        return Handler


def completion(text: str, finish: str = "stop", top: dict[str, float] | None = None, **more: Any) -> Any:
    """The body of a chat completion; `top` has probabilities of first tokens."""
    logprobs = None
    if top is not None:
        entries = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top.items()]
        logprobs = {"content": [entries[0] | {"top_logprobs": entries}]}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": logprobs}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


def error(message: str) -> Any:
    """The body of an error response."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": 400}}


def settings(*servers: Server, **given: Any) -> EngineSettings:
    """Settings of the engine for these servers."""
    urls = [server.url for server in servers]
    return EngineSettings(name="openai", base_url=urls if len(urls) > 1 else urls[0], **given)


async def connect(*servers: Server, model: ModelSettings | None = None, **given: Any) -> Any:
    """An engine for these servers, which is closed with the first of them."""
    from scalecap.engines.openai import open_openai  # which needs aiohttp

    engine = await open_openai(model or ModelSettings(name="m"), settings(*servers, **given))
    servers[0]._engines.append(engine)
    return engine


def digest(request: dict[str, Any]) -> str:
    """A short hash of a request, image included."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]


def prompt_text(request: dict[str, Any]) -> str:
    """The text of the last turn."""
    content = request["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def storyteller(request: dict[str, Any]) -> Answer:
    """A script for the seed's prompts: each request has its own reply, the same every time."""
    word, text = digest(request), prompt_text(request)
    if request.get("logprobs"):
        yes = 0.2 + 0.79 * int(word, 16) / 16**12
        return 200, completion("Yes", top={"Yes": yes, "No": 1 - yes})
    if "Instructions:" in text:
        return 200, completion("Describe more details about the dog.\nDescribe more details about the hat.")
    if "Basic Context" in text:
        return 200, completion(f"All of it, {word}.")
    if "more details" in text:
        return 200, completion(f"It is like {word}.")
    return 200, completion(f"There is a dog, {word}. It wears a hat. The hat is {word[:3]}.")
