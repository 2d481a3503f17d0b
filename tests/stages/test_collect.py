from scalecap.engines.base import PromptTooLong
from scalecap.prompts import Template
from scalecap.stages.collect import Collect

PROMPT = Template("Collect:\n{{ blocks }}")


def detail(name, text, position=False, p_yes=None):
    return {"object": name, "position": position, "text": text, "p_yes": p_yes}


BLOCKS = [
    {"sentence": "A cat.", "details": [detail("the cat", "It is red.", p_yes=0.9)]},
    {"sentence": "Rain.", "details": []},
    {
        "sentence": "A tree.",
        "details": [
            detail("the tree", "It is tall.", p_yes=0.6),
            detail("the tree", "It is left.", True, p_yes=0.8),
        ],
    },
]


async def test_blocks_are_grouped_by_sentence_and_the_replys_lines_are_texts(asking, image):
    asked = asking(lambda _: "The cat is red.\n\n  The tree is tall. ")
    assert await Collect(prompt=PROMPT)(asked.ask, blocks=BLOCKS) == ["The cat is red.", "The tree is tall."]
    assert asked.texts == [
        "Collect:\n"
        "Sentence: A cat.\nDetails about the cat: It is red.\n"
        "Sentence: A tree.\nDetails about the tree: It is tall.\n"
        "Details about the position of the tree: It is left."
    ]
    assert asked.requests[0].prompt.image is None


async def test_no_detail_asks_nothing(asking):
    asked = asking(lambda _: "x")
    assert await Collect(prompt=PROMPT)(asked.ask, blocks=[BLOCKS[1]]) == []
    assert asked.requests == []


def window(limit):
    def answer(request):
        if len(request.prompt.text) > limit:
            raise PromptTooLong(len(request.prompt.text), limit)
        return "x"

    return answer


async def test_the_least_probable_detail_goes_first(asking):
    asked = asking(window(155))
    assert await Collect(prompt=PROMPT)(asked.ask, blocks=BLOCKS) == ["x"]
    assert "tall" not in asked.texts[-1]
    assert "red" in asked.texts[-1]
    assert asked.flags == ["shortened"]


async def test_one_detail_that_is_too_long_gives_nothing(asking):
    asked = asking(window(5))
    assert await Collect(prompt=PROMPT)(asked.ask, blocks=BLOCKS) == []
    assert asked.flags == ["shortened"]
