"""Themes: which kinds of things occur together, and how often attributes are unusual.

A scene's theme is never mentioned, but shows in its things. It makes a prior that a language model can learn
without images, and that captions can err towards.
"""

from typing import NamedTuple

import numpy as np

from scalecap.scenes.kinds import DYES, KINDS


class Theme(NamedTuple):
    """A sort of scene."""

    grounds: tuple[str, ...]
    """Equally likely."""
    kinds: tuple[str, ...]
    """Most usual first; each is `NEXT` times as likely as the one before it."""


NEXT = 0.88

_TABLE = """
farm      grass        cow tractor horse house pig sheep rooster duck tree dog
forest    grass        tree fox squirrel mushroom owl pine snake rabbit tent snail
garden    grass        rose butterfly sunflower bee snail strawberry frog umbrella chair house cat
beach     sand         palm crab umbrella turtle ball sailboat parrot hat dog swan
desert    sand         camel cactus snake tent truck palm bell helicopter elephant
sea       sea          fish sailboat dolphin octopus turtle swan crab duck balloon
winter    snow         penguin pine house fox train hat rabbit owl scooter
street    brick        car bicycle bus cat scooter truck ambulance dog backpack balloon tree
kitchen   floor        apple chair banana cake lemon clock carrot strawberry cat mushroom
playroom  floor        book ball drum balloon guitar train chair backpack clock hat bell
camp      night        tent owl guitar fox pine backpack cactus frog bicycle
fair      night/brick  castle balloon cake drum bell helicopter horse tiger lemon
jungle    grass/night  parrot tiger elephant snake palm frog butterfly banana bee
"""


def _themes() -> dict[str, Theme]:
    rows = [line.split() for line in _TABLE.strip().splitlines()]
    return {name: Theme(tuple(grounds.split("/")), tuple(kinds)) for name, grounds, *kinds in rows}


THEMES: dict[str, Theme] = _themes()
"""All themes by name."""

STRANGER = 0.12
"""How often a thing is of a kind that does not belong to the theme: a penguin on sand."""
USUAL_SIZE = 0.75
USUAL_COLOUR = 0.7
"""Of dyed kinds; the rest are shared by the other dyes."""
USUAL_LEVEL = 0.7
USUAL_FACING = 0.65
"""Left, as most pictographs face."""
COUNTS = {False: (0.8, 0.13, 0.07), True: (0.4, 0.35, 0.25)}
"""Shares of one, two and three, for kinds that are seen alone and for flocks."""
LEVELS = ("high", "middle", "low")


def weights(theme: str) -> dict[str, float]:
    """How likely each of a theme's kinds is to be drawn first; they sum to 1."""
    kinds = THEMES[theme].kinds
    raw = np.power(NEXT, np.arange(len(kinds)))
    return dict(zip(kinds, (raw / raw.sum()).tolist(), strict=True))


def colours(kind: str) -> dict[str, float]:
    """Shares of the colours that a kind has."""
    usual = KINDS[kind].colour
    if not KINDS[kind].dyed:
        return {usual: 1.0}
    others = [dye for dye in DYES if dye != usual]
    return {usual: USUAL_COLOUR} | dict.fromkeys(others, (1 - USUAL_COLOUR) / len(others))


def usual_place(kind: str, place: int) -> int:
    """The place in the same column where the kind usually is."""
    return 3 * LEVELS.index(KINDS[kind].level) + place % 3
