import asyncio
import re
import socket
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pillow

from scalecap.engines.base import (
    Choose,
    Chosen,
    Generate,
    Generated,
    Image,
    Prompt,
    Reply,
    Sampling,
    Score,
    Scored,
    Token,
    Usage,
)
from scalecap.interpreter.cache import Cache, CacheError, key


def get(cache: Cache, key: str) -> Reply | None:
    return asyncio.run(cache.get(key))


def put(cache: Cache, key: str, reply: Reply) -> None:
    """Store a reply, without a running event loop."""
    asyncio.run(cache.put(key, reply))


def file(folder: Path) -> Path:
    """This host's file."""
    return folder / f"replies-{socket.gethostname()}.sqlite"


REPLIES = [
    Generated("text “ü”", "stop", Usage(1, 2, 3)),
    Chosen((0.25, 0.75), 0.5, Usage(4, 5, 6)),
    Scored((Token(0, 2, -1.5), Token(2, 3, -0.5, 7.25)), Usage(8)),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_comes_back_whole_at_once_and_from_the_file(tmp_path, reply):
    cache = Cache(tmp_path / "new" / "folder")
    assert get(cache, "k") is None
    put(cache, "k", reply)
    assert get(cache, "k") == reply
    cache.close()
    again = Cache(tmp_path / "new" / "folder")
    assert get(again, "k") == reply
    assert get(again, "l") is None
    again.close()


@pytest.mark.parametrize(("finish", "kept"), [("length", True), ("context", False)])
def test_a_truncated_reply_is_kept_where_the_request_alone_says_where_it_ends(tmp_path, finish, kept):
    """`max_tokens` is in the key; what the context had room for is not."""
    cache, reply = Cache(tmp_path), Generated("cut", finish)
    put(cache, "k", reply)
    assert get(cache, "k") == (reply if kept else None)
    cache.close()


def test_an_empty_reply_is_not_kept(tmp_path):
    cache = Cache(tmp_path)
    put(cache, "k", Generated(" \n", "stop"))
    assert get(cache, "k") is None
    cache.close()


def test_a_changed_value_is_noticed(tmp_path):
    cache = Cache(tmp_path)
    for name in "kl":
        put(cache, name, REPLIES[1])
    cache.close()
    with sqlite3.connect(file(tmp_path)) as connection:
        connection.execute("UPDATE replies SET reply = replace(reply, '0.25', '0.26') WHERE key = 'k'")
    again = Cache(tmp_path)
    assert (get(again, "k"), get(again, "l")) == (None, REPLIES[1])
    again.close()


def test_a_value_under_another_key_is_noticed(tmp_path):
    cache = Cache(tmp_path)
    put(cache, "k", REPLIES[1])
    cache.close()
    with sqlite3.connect(file(tmp_path)) as connection:
        connection.execute("UPDATE replies SET key = 'l'")
    again = Cache(tmp_path)
    assert get(again, "l") is None
    again.close()


def test_the_command_prints_the_size_and_clears(tmp_path, command, capsys):
    cache = Cache(tmp_path)

    async def fill() -> None:
        await asyncio.gather(*(cache.put(str(n), REPLIES[0]) for n in range(1200)))

    asyncio.run(fill())
    cache.close()
    for words, shown in (((), "1,200 replies, "), (("--clear",), "0 replies, 0.0 MB in ")):
        assert command("cache", tmp_path, *words) == 0
        assert capsys.readouterr().out.startswith(shown)


def test_the_command_refuses_a_folder_without_a_cache(tmp_path, command, capsys):
    for folder in (tmp_path / "absent", tmp_path):
        assert command("cache", folder, "--clear") == 1
        assert capsys.readouterr().err == f"error: no reply cache in {folder}\n"
    assert not list(tmp_path.iterdir())


def test_hosts_that_share_a_folder_share_no_file(tmp_path, monkeypatch, command, capsys):
    """SQLite's write-ahead log needs shared memory, which hosts do not share."""
    opened = []
    for host in ("node-1", "node-2", "odd/../name"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        opened.append(Cache(tmp_path))
        put(opened[-1], host, REPLIES[0])
    names = {"replies-node-1.sqlite", "replies-node-2.sqlite", "replies-odd_.._name.sqlite"}
    assert {path.name for path in tmp_path.glob("*.sqlite")} == names
    assert [get(cache, "node-1") for cache in opened] == [REPLIES[0], None, None]
    for cache in opened:
        cache.close()
    (tmp_path / "replies.sqlite").write_bytes(bytes(3000))  # as earlier versions named it
    assert command("cache", tmp_path) == 0
    assert re.fullmatch(
        rf"1 replies, .* MB in {tmp_path}/replies-odd_\.\._name\.sqlite, this host's\n"
        rf".* MB in {tmp_path}/replies-node-1\.sqlite\n.* MB in {tmp_path}/replies-node-2\.sqlite\n"
        rf"0\.0 MB in {tmp_path}/replies\.sqlite\n",
        capsys.readouterr().out,
    )
    assert command("cache", tmp_path, "--clear") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["replies-odd_.._name.sqlite"]
    assert capsys.readouterr().out.startswith("0 replies, ")


def test_two_runs_share_a_file(tmp_path):
    one, two = Cache(tmp_path), Cache(tmp_path)
    for n in range(200):
        put((one, two)[n % 2], str(n), Generated(str(n), "stop"))
    one.close()
    two.close()
    third = Cache(tmp_path)
    assert all(get(third, str(n)) == Generated(str(n), "stop") for n in range(200))
    third.close()


@pytest.mark.parametrize(
    "value", ["{", "[]", "{}", '{"is": "Generated", "usage": [1]}', '{"is": "X", "usage": []}']
)
def test_a_damaged_value_is_computed_again(tmp_path, value):
    cache = Cache(tmp_path)
    with sqlite3.connect(file(tmp_path)) as connection:
        connection.execute("INSERT INTO replies VALUES ('k', ?)", (value,))
    assert get(cache, "k") is None
    cache.close()


def test_a_damaged_file_is_named_with_the_fix(tmp_path):
    (file(tmp_path)).write_bytes(b"no data base at all " * 100)
    with pytest.raises(
        CacheError, match=r"can't open the reply cache .*replies-.*\.sqlite .*: delete it.*cache=off"
    ):
        Cache(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"can't open the reply cache .*file/replies-"):
        Cache(tmp_path / "file")


def test_a_failing_write_is_warned_about_once_and_later_ones_succeed(tmp_path, caplog):
    cache = Cache(tmp_path)
    with sqlite3.connect(file(tmp_path)) as connection:
        connection.execute("ALTER TABLE replies RENAME TO hidden")
    for name in "kl":
        put(cache, name, REPLIES[0])
    assert len(caplog.records) == 1
    assert "replies can't be written to" in caplog.text
    with sqlite3.connect(file(tmp_path)) as connection:
        connection.execute("ALTER TABLE hidden RENAME TO replies")
    put(cache, "m", REPLIES[1])
    cache.close()
    assert "2 replies could not be written" in caplog.text
    again = Cache(tmp_path)
    assert (get(again, "k"), get(again, "m"), again.count()) == (None, REPLIES[1], 1)
    again.close()


def test_a_transaction_that_cannot_be_rolled_back_blocks_nobody(tmp_path, caplog):
    class Broken:
        in_transaction = True

        def execute(self, statement):
            raise sqlite3.OperationalError("disk I/O error")

        def close(self):
            pass

    cache = Cache(tmp_path)
    cache._writes.close()
    cache._writes = Broken()
    asyncio.run(asyncio.wait_for(cache.put("k", REPLIES[0]), 60))
    cache.close()
    assert "1 replies could not be written" in caplog.text


def test_a_damaged_page_costs_the_replies_on_it_alone(tmp_path):
    cache = Cache(tmp_path)

    async def fill() -> None:
        await asyncio.gather(
            *(cache.put(f"{n:04}", Generated(f"text {n} " * 20, "stop")) for n in range(1000))
        )

    asyncio.run(fill())
    cache.close()
    path = file(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"text 500 ") // 4096 * 4096
    content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    again = Cache(tmp_path)
    lost = [n for n in range(1000) if get(again, f"{n:04}") is None]
    assert 500 in lost
    assert len(lost) < 30
    put(again, "another", REPLIES[0])
    assert get(again, "another") == REPLIES[0]
    again.close()


def test_a_reply_is_in_the_file_when_put_returns(tmp_path):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    put(cache, "k", REPLIES[0])
    assert get(other, "k") == REPLIES[0]
    cache.close()
    other.close()


IMAGE, OTHER = (Image(name, Pillow.new("RGB", (1, 1))) for name in ("abc", "abd"))
BASE = Generate(Prompt("text", IMAGE), Sampling(), 1)


@pytest.mark.parametrize(
    "request_",
    [
        replace(BASE, seed=2),
        replace(BASE, schema="{}"),
        replace(BASE, prompt=Prompt("text")),
        replace(BASE, prompt=Prompt("text", OTHER)),
        replace(BASE, prompt=Prompt("texts", IMAGE)),
        replace(BASE, prompt=Prompt("text", IMAGE, "system")),
        *(
            replace(BASE, sampling=Sampling(**change))
            for change in (
                {"temperature": 0.0},
                {"top_p": 0.5},
                {"max_tokens": 1},
                {"repetition_penalty": 1.1},
            )
        ),
        Choose(BASE.prompt),
        Choose(BASE.prompt, ("no", "yes")),
        Score(BASE.prompt, "text"),
        Score(BASE.prompt, "other"),
    ],
)
def test_all_of_a_request_is_in_its_key(request_):
    keys = {key("engine", BASE), key("engine", request_), key("other", BASE), key("other", request_)}
    assert len(keys) == 4


def test_equal_pixels_have_one_key():
    twin = Image("abc", Pillow.new("RGB", (1, 1)))
    assert key("engine", BASE) == key("engine", replace(BASE, prompt=Prompt("text", twin)))


async def test_neither_a_slow_disk_blocks_the_loop_nor_a_hanging_read_the_end(tmp_path, monkeypatch):
    cache, waits, released = Cache(tmp_path), threading.Event(), threading.Event()
    await cache.put("k", REPLIES[0])
    find = cache._find

    def slow(name: str) -> Reply | None:
        waits.set()
        released.wait(60)
        return find(name)

    monkeypatch.setattr(cache, "_find", slow)
    reading = asyncio.create_task(cache.get("k"))
    await asyncio.to_thread(waits.wait, 60)
    await cache.put("l", REPLIES[1])  # the loop goes on, and so do writes
    assert not reading.done()
    hangs = asyncio.create_task(cache.get("l"))
    await asyncio.sleep(0)
    monkeypatch.setattr("scalecap.interpreter.cache._CLOSE_TIMEOUT", 0.0)
    cache.close()
    assert not released.is_set()
    released.set()
    assert await reading == REPLIES[0]
    assert await hangs == REPLIES[1]
