"""Read the questions out of a model's reply."""

import re

from scalecap.stages import stage

ASKS = "Describe more details about"
_NEXT_EXAMPLE = re.compile(r"\W*Sentence\W*:")
MARKDOWN = re.compile(r"[*`\[\]]")


@stage
def parse_questions(text: str, *, max_questions: int = 20) -> list[str]:
    """The first distinct questions of the reply, then the same ones about positions.

    A line that contains "Describe more details about" gives one: from its first "Describe" to its
    first full stop after that, without the marks of bold type, code and brackets.
    """
    found: list[str] = []
    for line in asking_lines(text):
        before, stop, _ = line[line.index("Describe") :].strip().partition(".")
        found.append(MARKDOWN.sub("", before) + stop)
    objects = list(dict.fromkeys(found))[: max(max_questions, 0)]
    return objects + [question.replace(ASKS, f"{ASKS} the position of") for question in objects]


def asking_lines(reply: str) -> list[str]:
    """The lines that ask, until the reply goes on to another "Sentence:", as the prompt's examples do."""
    found: list[str] = []
    for line in reply.split("\n"):
        if ASKS in line:
            found.append(line)
        elif found and _NEXT_EXAMPLE.match(line):
            break
    return found
