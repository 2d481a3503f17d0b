"""Views of a scene: the whole of it or a square window, with the ground truth of what is visible."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from scalecap.scenes.kinds import PLACES
from scalecap.scenes.world import CELL, UNIT, Scene, render, sample

_REACH = 25
"""Approximate distance from the centre of a place to the edge of a thing, in units."""
_TRIES = 40


@dataclass(frozen=True)
class View:
    """A window on a scene, in the scene's units, whose edges cut no thing."""

    scene: Scene
    left: float = 0.0
    top: float = 0.0
    side: float = UNIT

    @property
    def whole(self) -> bool:
        """Whether the view shows the whole scene."""
        return self.side == UNIT

    def image(self, pixels: int) -> Image.Image:
        """Renders the view as a square of `pixels` x `pixels`."""
        if self.whole:
            return render(self.scene, pixels)
        scale = 336 / UNIT
        left, top, right, bottom = (
            round(edge * scale) for edge in (self.left, self.top, self.left + self.side, self.top + self.side)
        )
        cut = render(self.scene, 336).crop((left, top, right, bottom))
        return cut.resize((pixels, pixels), Image.Resampling.BICUBIC)

    def truth(self) -> dict[str, Any]:
        """Like `Scene.truth`; in a window, sizes are None and places are relative to the window."""
        truth = self.scene.truth()
        if self.whole:
            return truth
        places = {}
        for thing in self.scene.things:
            x, y = self._middle(thing.place)
            if 0 < x < 1 and 0 < y < 1:
                places[thing.kind] = PLACES[3 * int(3 * y) + int(3 * x)]
        things = [
            thing
            | {
                "size": None,
                "place": places[thing["kind"]],
                "next_to": [kind for kind in thing["next_to"] if kind in places],
            }
            for thing in truth["things"]
            if thing["kind"] in places
        ]
        return truth | {"things": things}

    def _middle(self, place: int) -> tuple[float, float]:
        """The centre of a place, relative to the window."""
        row, column = divmod(place, 3)
        x, y = (column + 0.5) * CELL, (row + 0.5) * CELL
        return (x - self.left) / self.side, (y - self.top) / self.side

    def cuts(self) -> bool:
        """Whether an edge of the window cuts a thing."""
        reach = _REACH / self.side
        for thing in self.scene.things:
            middle = self._middle(thing.place)
            inside = all(reach <= each <= 1 - reach for each in middle)
            outside = any(each <= -reach or each >= 1 + reach for each in middle)
            if not inside and not outside:
                return True
        return False


def window(scene: Scene, rng: np.random.Generator) -> View:
    """A random window around one of the things; the whole scene if none is found that cuts no thing."""
    for _ in range(_TRIES):
        side = float(rng.uniform(CELL, 2.2 * CELL))
        thing = scene.things[rng.integers(len(scene.things))]
        row, column = divmod(thing.place, 3)
        middle = (np.array([column, row]) + 0.5) * CELL
        corner = np.clip(middle - rng.uniform(_REACH, side - _REACH, 2), 0, UNIT - side)
        view = View(scene, float(corner[0]), float(corner[1]), side)
        if not view.cuts():
            return view
    return View(scene)


def draw_view(seed: int, *, habits: bool = True, zoomed: float = 0.0) -> View:
    """The view of a seed: a window with probability `zoomed`, else the whole scene."""
    scene = sample(seed, habits=habits)
    rng = np.random.default_rng((seed, 4))
    return window(scene, rng) if rng.random() < zoomed else View(scene)
