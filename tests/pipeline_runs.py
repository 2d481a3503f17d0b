"""Rows and scripted replies to run a pipeline on."""

from typing import Any

from PIL import Image as Pillow
from runs import roles

from scalecap.engines.base import Choose, Image, Sampling
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Pipeline
from scalecap.rows import Row

DOG, DOG_AT = "Describe more details about the dog.", "Describe more details about the position of the dog."


def an_image(index: int = 0) -> Image:
    return Image(str(index), Pillow.new("RGB", (1, 1)))


def row(index: int = 0, **columns: Any) -> Row:
    return Row(index, {"id": str(index), **columns}, lambda: an_image(index))


def answer(request: Any) -> Any:
    """A model that sees a dog; the second sentence and the answer about positions are wrong."""
    text = request.prompt.text
    if isinstance(request, Choose):
        return {"True: A cat.": 0.2, "Grounded: It is left.": 0.8}.get(text, 0.95)
    replies = {"Caption.": "A dog. A cat.", "Ask: A dog.": DOG, DOG: "It is brown.", DOG_AT: "It is left."}
    return replies.get(text, f"fused {text}")


async def go(steps, rows, script=answer, *, budget=None, in_flight=4, stop=None, on_row=None):
    """Finished rows by index, and the counts."""
    finished, counts = [], RunUsage()
    dispatcher = Dispatcher(roles(script), None, Sampling(), 0, counts, 0.0)
    pipeline = Pipeline.build(steps, None, budget=budget)
    await pipeline.run(
        rows, dispatcher, in_flight=lambda: in_flight, on_row=on_row or finished.append, stop=stop
    )
    return sorted(finished, key=lambda each: each.row.index), counts
