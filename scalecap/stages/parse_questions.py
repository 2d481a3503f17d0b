"""Read the questions out of a model's reply."""

from scalecap.stages import stage

ASKS = "Describe more details about"


@stage
def parse_questions(text: str, *, max_questions: int = 20) -> list[str]:
    """The first distinct questions of the reply, then the same ones about positions.

    A line that contains "Describe more details about" gives one: from its first "Describe" to its
    first full stop after that.
    """
    found: list[str] = []
    for line in text.split("\n"):
        if ASKS in line:
            before, stop, _ = line[line.index("Describe") :].strip().partition(".")
            found.append(before + stop)
    objects = list(dict.fromkeys(found))[: max(max_questions, 0)]
    return objects + [question.replace(ASKS, f"{ASKS} the position of") for question in objects]
