import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from runs import roles

from scalecap.engines.base import Chosen, EngineError, Generate, Generated, Image, Prompt, Sampling, Usage
from scalecap.interpreter.cache import Cache
from scalecap.interpreter.dispatch import Dispatcher, RunUsage, StepUsage, is_looping, seed

RANDOM, GREEDY = Sampling(temperature=0.7), Sampling(temperature=0)
GOOD = Generated("fine", "stop")
CUT = Generated("cut", "length")
LOOP = Generated("again and " * 20, "stop")
IMAGE, OTHER = (Image(name, Pillow.new("RGB", (1, 1))) for name in ("abc", "abd"))


class World:
    """A scripted engine, the requests that it got, and a client for the step "s"."""

    def __init__(self, script, sampling=RANDOM, cache=None, run_seed=0):
        self.requests, self.flags, self.counts = [], [], RunUsage()

        def answer(request):
            self.requests.append(request)
            return script(request) if callable(script) else script[len(self.requests) - 1]

        self.dispatcher = Dispatcher(roles(answer), cache, sampling, run_seed, self.counts, 0.0)
        self.client = self.dispatcher.client("s", self.flags.append)


@pytest.mark.parametrize(
    ("replies", "kept", "flags"),
    [
        ([GOOD], GOOD, []),
        ([CUT, GOOD], GOOD, []),
        ([LOOP, GOOD], GOOD, []),
        ([CUT, LOOP], CUT, ["truncated"]),
        ([LOOP, CUT], CUT, ["truncated"]),
        ([LOOP, LOOP], LOOP, ["looping"]),
        ([CUT, Generated("later", "length")], CUT, ["truncated"]),
    ],
)
async def test_a_faulty_random_reply_is_drawn_once_more_and_the_better_kept(replies, kept, flags):
    world = World(replies)
    assert await world.client.generate("text") == kept
    assert world.flags == flags
    assert len(world.requests) == len(replies)
    assert len({request.seed for request in world.requests}) == len(replies)
    count = world.counts.steps["s"]
    assert (count.requests, count.retried) == (len(replies), len(replies) - 1)
    assert list(count.flags) == flags


async def test_truncated_draws_come_from_the_cache_in_a_later_run(tmp_path):
    cache = Cache(tmp_path)
    for script in ([CUT, LOOP], []):
        world = World(script, cache=cache)
        assert await world.client.generate("text") == CUT
        assert world.flags == ["truncated"]
        assert len(world.requests) == len(script)
    cache.close()


async def test_reasoning_is_separated_flagged_counted_and_cached(tmp_path):
    cache = Cache(tmp_path)
    for script in (lambda _: "<think>or a red dog</think>\n\nA cat.", []):
        world = World(script, cache=cache)
        reply = await world.client.generate("text")
        assert (reply.text, reply.reasoning) == ("A cat.", "or a red dog")
        assert world.flags == ["reasoned"]
        assert world.counts.steps["s"].flags == {"reasoned": 1}
        assert world.counts.total.reasoning_tokens == (4 if callable(script) else 0)
    cache.close()


async def test_a_greedy_reply_is_never_drawn_again():
    world = World([CUT], GREEDY)
    assert await world.client.generate("text") == CUT
    assert world.flags == ["truncated"]
    assert world.counts.total.retried == 0


NO, SILENT = Generated("I'm sorry, but I can't assist.", "stop"), Generated(" ", "stop")


@pytest.mark.parametrize(
    ("replies", "retry", "kept", "flags"),
    [
        ([NO], None, NO, ["refused"]),
        ([SILENT], None, SILENT, ["empty"]),
        ([Generated("", "length", reasoning="or"), GOOD], None, GOOD, []),
        ([NO, GOOD], "again", GOOD, ["reprompted"]),
        ([SILENT, GOOD], "again", GOOD, ["reprompted"]),
        ([NO, NO], "again", NO, ["reprompted", "refused"]),
        ([NO, SILENT], "again", NO, ["reprompted", "refused"]),
        ([NO, CUT, GOOD], "again", GOOD, ["reprompted"]),
        ([NO, CUT, CUT], "again", CUT, ["reprompted", "truncated"]),
        ([GOOD], "again", GOOD, []),
    ],
)
async def test_a_refusal_or_an_empty_reply_is_flagged_and_reprompted_once(replies, retry, kept, flags):
    world = World(replies)
    assert await world.client.generate("text", image=IMAGE, retry=retry) == kept
    assert world.flags == flags
    assert all(request.prompt.image is IMAGE for request in world.requests)
    assert len(world.requests) == len(replies)
    assert [request.prompt.text for request in world.requests][1:] == [retry or "text"] * (len(replies) - 1)
    assert world.counts.steps["s"].flags == Counter(flags)


async def test_a_step_may_have_its_own_sampling():
    world = World([CUT], RANDOM)
    await world.client.generate("text", sampling=GREEDY)
    assert world.requests[0].sampling == GREEDY
    assert world.requests[0].seed == 0


async def test_choices_and_unanswered_ones_are_counted(tmp_path):
    """The cache keeps the reply as it was, so another `min_mass` needs no new request."""
    cache, reply = Cache(tmp_path), Chosen((0.7, 0.3), mass=0.05)
    for min_mass, answered in ((0.0, True), (0.05, True), (0.06, False)):
        world = World(lambda _: reply, cache=cache)
        world.dispatcher.min_mass = min_mass
        chosen = await world.client.choose("a")
        assert (chosen.answered, chosen.mass) == (answered, 0.05)
        assert chosen.probabilities == ((0.7, 0.3) if answered else (0.0, 0.0))
        assert world.flags == ([] if answered else ["unanswered"])
        count = world.counts.total
        assert (count.choices, count.flags["unanswered"]) == (1, int(not answered))
        assert len(world.requests) == (1 if min_mass == 0 else 0)
    cache.close()


async def test_a_choice_is_among_the_options_of_its_step():
    world = World(["red"])
    assert (await world.client.choose("Which?", ["blue", "red", "green"])).probabilities == (0.0, 1.0, 0.0)
    assert world.requests[0].options == ("blue", "red", "green")


@pytest.mark.parametrize(
    ("choices", "unanswered", "unreadable"),
    [(49, 49, False), (50, 25, False), (50, 26, True), (90, 40, False)],
)
def test_most_choices_of_a_step_unanswered(choices, unanswered, unreadable):
    counts = RunUsage()
    counts.steps["other"] += StepUsage(choices=1000)
    counts.steps["s"] += StepUsage(choices=choices, flags=Counter(unanswered=unanswered))
    assert counts.unanswered_step == ("s" if unreadable else None)


async def test_equal_requests_in_flight_are_computed_once():
    world = World(lambda _: 0.5)
    first, _, twin = await asyncio.gather(
        world.client.choose("a"), world.client.choose("b"), world.dispatcher.client("t", print).choose("a")
    )
    assert first == twin == Chosen((0.5, 0.5), usage=Usage(1, None, 1))
    assert len(world.requests) == 2
    assert (world.counts.steps["s"].requests, world.counts.steps["s"].reused) == (2, 0)
    assert (world.counts.steps["t"].requests, world.counts.steps["t"].reused) == (1, 1)
    saved = [
        (step.reused_prompt_tokens, step.reused_generated_tokens) for step in world.counts.steps.values()
    ]
    assert sorted(saved) == [(0, 0), (1, 1)]
    assert not any(vars(RunUsage().total).values())
    assert world.counts.total.prompt_tokens == 2
    await world.client.choose("a")
    assert len(world.requests) == 3  # no cache: what is not in flight is computed


async def test_counts_handed_over_while_a_request_is_in_flight_lose_nothing():
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(_):
        begun.set()
        await release.wait()
        return 0.5

    world = World(slow)
    waiting = [asyncio.create_task(world.client.choose("a")) for _ in range(2)]
    await begun.wait()
    before, world.dispatcher.usage = world.dispatcher.usage, RunUsage()
    release.set()
    await asyncio.gather(*waiting)
    whole = before.total + world.dispatcher.usage.total
    assert (whole.requests, whole.reused, whole.prompt_tokens, whole.reused_prompt_tokens) == (2, 1, 1, 1)


async def test_a_cancelled_caller_leaves_the_reply_to_the_others():
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return 1.0

    world = World(slow)
    quitter, waiter = (asyncio.create_task(world.client.choose("a")) for _ in range(2))
    await asyncio.sleep(0)
    quitter.cancel()
    await asyncio.sleep(0)
    release.set()
    assert (await waiter).probabilities == (1, 0)


async def test_an_error_reaches_all_waiting_callers_and_is_not_cached():
    def fail(_):
        raise EngineError("no")

    world = World(fail)
    results = await asyncio.gather(*(world.client.choose("a") for _ in range(2)), return_exceptions=True)
    assert [str(result) for result in results] == ["no", "no"]
    with pytest.raises(EngineError):
        await world.client.choose("a")
    assert len(world.requests) == 2


async def test_cancel_pending_cancels_what_is_in_flight():
    begun, cancelled = asyncio.Event(), []

    async def forever(_):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    world = World(forever)
    waiting = asyncio.create_task(world.client.choose("a"))
    await begun.wait()
    await world.dispatcher.cancel_pending()
    assert cancelled == [True]
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_second_run_reads_the_cache(tmp_path):
    cache = Cache(tmp_path)
    first, second = World(lambda _: "fine", cache=cache), World([], cache=cache)
    reply = await first.client.generate("a")
    assert await second.client.generate("a") == reply
    assert second.counts.total.reused == 1
    assert second.counts.total.generated_tokens == 0
    cache.close()


async def test_tokens_of_replies_from_the_cache_add_up(tmp_path):
    cache = Cache(tmp_path)
    for _ in range(2):
        world = World(lambda _: Generated("fine", "stop", Usage(3, None, 2)), cache=cache)
        for text in ("one", "two"):
            await world.client.generate(text)
    count = world.counts.steps["s"]
    assert (count.requests, count.reused) == (2, 2)
    assert (count.reused_prompt_tokens, count.reused_generated_tokens) == (6, 4)
    assert (count.prompt_tokens, count.generated_tokens) == (0, 0)
    cache.close()


async def test_equal_requests_that_are_looked_up_at_once_are_computed_once(tmp_path):
    cache = Cache(tmp_path)
    for computed in (1, 0):
        world = World(lambda _: 0.5, cache=cache)
        await asyncio.gather(*(world.client.choose("a") for _ in range(3)))
        assert len(world.requests) == computed
        assert (world.counts.total.requests, world.counts.total.reused) == (3, 3 - computed)
    cache.close()


async def test_only_a_random_reply_depends_on_the_run_seed(tmp_path):
    cache = Cache(tmp_path)
    for run_seed in (1, 2):
        for sampling, computed in ((RANDOM, 1), (GREEDY, int(run_seed == 1))):
            world = World(lambda _: "fine", sampling, cache, run_seed)
            await world.client.generate("a")
            assert len(world.requests) == computed
    cache.close()


async def test_tokens_are_counted_per_step():
    world = World(lambda r: Generated("x", "stop", Usage(10, 4, 3)) if isinstance(r, Generate) else -1.0)
    await asyncio.gather(
        world.client.generate("a"), world.dispatcher.client("t", print).generate("b", model="llm")
    )
    await world.client.score("a b", "c d")
    step, total = world.counts.steps["s"], world.counts.total
    assert (step.requests, step.prompt_tokens, step.cached_tokens, step.generated_tokens) == (2, 14, 4, 3)
    assert (total.requests, total.prompt_tokens, total.cached_tokens, total.generated_tokens) == (3, 24, 8, 6)


async def test_a_row_counts_what_it_would_cost_without_a_cache():
    row = StepUsage()
    world = World(lambda _: Generated("fine", "stop", Usage(10, 4, 3)))
    client = world.dispatcher.client("s", print, row)
    await asyncio.gather(*(client.generate(text, sampling=GREEDY) for text in ("a", "a", "b")))
    assert len(world.requests) == 2
    assert (row.requests, row.prompt_tokens, row.generated_tokens) == (3, 30, 9)


@pytest.mark.parametrize(
    ("cached", "images", "share", "alarm"),
    [
        ([0] * 60, 1, 0.0, True),
        ([None] * 60, 1, None, False),  # a server that reports nothing
        ([0] * 30 + [None] * 30, 1, 0.0, False),  # reported too seldom
        ([0] * 60, 60, 0.0, False),  # no image was shown twice
        ([4] * 60, 1, 0.04, True),
        ([80] * 60, 1, 0.8, False),
        ([0, *[80] * 59], 1, 80 * 59 / 6000, False),
    ],
)
async def test_images_whose_tokens_are_not_reused(cached, images, share, alarm):
    replies = iter(cached)
    world = World(lambda _: Chosen((1.0, 0.0), usage=Usage(100, next(replies), 1)))
    for number in range(len(cached)):
        image = Image(f"{number % images}", Pillow.new("RGB", (1, 1)))
        await world.client.choose(f"{number}", image=image)
    assert world.counts.steps["s"].cached_share == (None if share is None else pytest.approx(share))
    assert world.counts.prefix_cache_is_useless is alarm


async def test_texts_alone_do_not_count_as_images_that_are_not_reused():
    world = World(lambda _: Chosen((1.0, 0.0), usage=Usage(100, 0, 1)))
    for number in range(60):
        await world.client.choose(f"{number}")
    assert not world.counts.prefix_cache_is_useless


def test_a_seed_comes_from_the_run_the_step_and_content_alone():
    drawn = {
        seed(0, "s", Prompt("a")),
        seed(1, "s", Prompt("a")),
        seed(0, "t", Prompt("a")),
        seed(0, "s", Prompt("b")),
        seed(0, "s", Prompt("a"), sample=1),
        seed(0, "s", Prompt("a"), attempt=1),
        seed(0, "s", Prompt("a", IMAGE)),
        seed(0, "s", Prompt("a", OTHER)),
        seed(0, "s", Prompt("a\ud800")),  # half a character, as a cut reply may end
    }
    assert len(drawn) == 9
    assert all(0 <= each < 2**31 for each in drawn)
    assert seed(0, "s", Prompt("a")) == 695282591  # in every process


async def test_two_steps_with_one_prompt_draw_two_texts_and_share_a_greedy_one():
    for sampling, requests in ((RANDOM, 2), (GREEDY, 1)):
        world = World(lambda _: "fine", sampling)
        await asyncio.gather(world.client.generate("a"), world.dispatcher.client("t", print).generate("a"))
        assert len(world.requests) == len({request.seed for request in world.requests}) == requests


async def test_draws_of_one_prompt_differ_and_each_is_kept(tmp_path):
    cache = Cache(tmp_path)
    for computed in (3, 0):
        world = World(lambda _: "fine", RANDOM, cache)
        await asyncio.gather(*(world.client.generate("a", sample=number) for number in range(3)))
        assert len({request.seed for request in world.requests}) == computed
    cache.close()


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("", False),
        ("A dog stands on the grass. " * 4 + "A", True),
        ("A dog stands on the grass. " * 3, False),
        ("First a tree. " + "A dog stands on the grass. " * 4 + "A dog sta", True),
        ("A dog stands on the grass. " * 9 + "And that is all.", False),
        ("ha" * 60, True),
        ("ha" * 40, False),
        ("一只狗。" * 25, True),
        (" ".join(f"There are {n} dogs of {n * 7} kinds." for n in range(40)), False),
    ],
)
def test_loops(text, looping):
    assert is_looping(text) is looping


@given(st.text(max_size=50), st.text(min_size=1, max_size=30).filter(str.strip), st.integers(0, 29))
def test_a_chunk_repeated_often_enough_loops_wherever_it_is_cut(before, chunk, cut):
    text = before + chunk * (5 + 101 // len(chunk)) + chunk[: cut % len(chunk)]
    assert is_looping(text)


@pytest.mark.parametrize(
    ("concurrency", "kv_tokens", "prompts", "rows"),
    [
        (64, None, [500], 32),
        (64, 8000, [], 4),
        (64, 10000, [500], 10),
        (64, 10000, [200, 500, 300], 10),
        (8, 8000, [500], 4),
        (64, 800, [500], 1),
    ],
)
async def test_rows_in_flight_keep_the_engine_busy_and_their_images_in_its_cache(
    concurrency, kv_tokens, prompts, rows
):
    def script(request):
        return Generated("text", "stop", Usage(int(request.prompt.text), 0, 1))

    engines = roles(script, concurrency=concurrency, kv_tokens=kv_tokens)
    dispatcher = Dispatcher(engines, None, Sampling(), 0, RunUsage(), 0.0)
    image = Image("a", Pillow.new("RGB", (2, 2)))
    for tokens in prompts:
        await dispatcher.client("step", lambda flag: None).generate(str(tokens), image=image)
    assert dispatcher.max_rows() == rows
    await dispatcher.client("step", lambda flag: None).generate("4000")
    assert dispatcher.max_rows() == (rows if prompts else concurrency // 2)
    with dispatcher.without_images(), dispatcher.without_images():
        assert dispatcher.max_rows() == min(rows + 2 if prompts else concurrency, concurrency // 2)
