"""Scenes, deterministic by seed: their layout, rendering and ground truth."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalecap.scenes.kinds import DYES, GROUNDS, KINDS, PLACES, SPRITES
from scalecap.scenes.themes import (
    COUNTS,
    LEVELS,
    STRANGER,
    THEMES,
    USUAL_FACING,
    USUAL_LEVEL,
    USUAL_SIZE,
    colours,
    weights,
)

UNIT = 168
"""Side of an image in the units used below; `render` scales it."""
CELL = 56
_SIDE = {"large": 52, "small": 33, 2: 33, 3: 31}
_SPOTS = {
    1: ((0, 0),),
    2: ((-12, -10), (12, 10)),
    3: ((-14, -13), (14, -13), (0, 13)),
}


@dataclass(frozen=True)
class Thing:
    """One thing, or a group of two or three of a kind; kinds are unique in a scene."""

    kind: str
    place: int
    """0 to 8, row by row."""
    count: int
    size: str | None
    """`small` or `large`; None for groups."""
    facing: str | None
    """`left` or `right`; None for kinds that look the same both ways."""
    colour: str


@dataclass(frozen=True)
class Scene:
    """A ground and the things on it, in reading order."""

    seed: int
    theme: str
    ground: str
    things: tuple[Thing, ...]

    def next_to(self, thing: Thing) -> list[str]:
        """Kinds in the four neighbouring places."""
        row, column = divmod(thing.place, 3)
        return [
            other.kind
            for other in self.things
            if abs(other.place // 3 - row) + abs(other.place % 3 - column) == 1
        ]

    def truth(self) -> dict[str, Any]:
        """The ground truth as JSON."""
        return {
            "theme": self.theme,
            "ground": self.ground,
            "things": [
                {
                    "kind": thing.kind,
                    "count": thing.count,
                    "size": thing.size,
                    "place": PLACES[thing.place],
                    "facing": thing.facing,
                    "next_to": self.next_to(thing),
                    "colour": thing.colour,
                    "parts": list(KINDS[thing.kind].parts),
                }
                for thing in self.things
            ],
        }


def unseen_seed(seed: int, index: int) -> int:
    """The seed of a scene by `data.seed` and row; these are disjoint from the training seeds."""
    return 10**12 + seed * 10**8 + index


def sample(seed: int, *, habits: bool = True) -> Scene:
    """Samples a scene of two to five things; without `habits`, kinds and attributes are uniform."""
    rng = np.random.default_rng((seed, 1))
    theme = str(rng.choice(list(THEMES)))
    number = int(rng.integers(2, 6))
    free = list(range(9))
    things = []
    for kind in _kinds_of(theme, number, habits, rng):
        place = _place(kind, free, habits, rng)
        free.remove(place)
        things.append(_thing(kind, place, habits, rng))
    things.sort(key=lambda thing: thing.place)
    grounds = THEMES[theme].grounds if habits else tuple(GROUNDS)
    return Scene(seed, theme, str(rng.choice(grounds)), tuple(things))


def _kinds_of(theme: str, number: int, habits: bool, rng: np.random.Generator) -> list[str]:
    """Distinct kinds, most of them of the theme."""
    usual = weights(theme)
    strangers = [kind for kind in KINDS if kind not in usual]
    if not habits:
        return [str(kind) for kind in rng.choice(list(KINDS), size=number, replace=False)]
    odd = min(int((rng.random(number) < STRANGER).sum()), number - 1)
    known = rng.choice(list(usual), size=number - odd, replace=False, p=list(usual.values()))
    return [str(kind) for kind in [*known, *rng.choice(strangers, size=odd, replace=False)]]


def _place(kind: str, free: list[int], habits: bool, rng: np.random.Generator) -> int:
    rows = sorted({place // 3 for place in free})
    usual = LEVELS.index(KINDS[kind].level)
    if habits and usual in rows and (len(rows) == 1 or rng.random() < USUAL_LEVEL):
        return int(rng.choice([place for place in free if place // 3 == usual]))
    return int(rng.choice([place for place in free if not habits or len(rows) == 1 or place // 3 != usual]))


def _thing(kind: str, place: int, habits: bool, rng: np.random.Generator) -> Thing:
    fixed = KINDS[kind]
    shares = COUNTS[fixed.flock] if habits else (0.6, 0.2, 0.2)
    count = int(rng.choice([1, 2, 3], p=shares))
    usual = rng.random(2) < ((USUAL_SIZE, USUAL_FACING) if habits else (0.5, 0.5))
    other = "small" if fixed.size == "large" else "large"
    dyes = colours(kind)
    palette = list(dyes.values()) if habits else [1 / len(dyes)] * len(dyes)
    return Thing(
        kind=kind,
        place=place,
        count=count,
        size=None if count > 1 else fixed.size if usual[0] else other,
        facing=None if not fixed.faces else "left" if usual[1] else "right",
        colour=str(rng.choice(list(dyes), p=palette)),
    )


def render(scene: Scene, pixels: int = 336) -> Image.Image:
    """Renders the scene as an RGB square of `pixels` x `pixels`, with noise and jitter by its seed."""
    rng = np.random.default_rng((scene.seed, 2))
    scale = pixels / UNIT
    ground = _ground(scene.ground, int(rng.integers(6)), pixels)
    light = rng.uniform(0.9, 1.1)
    canvas = Image.fromarray(np.clip(ground * light, 0, 255).astype(np.uint8))
    for thing in scene.things:
        row, column = divmod(thing.place, 3)
        side = _SIDE[thing.size or thing.count] * rng.uniform(0.94, 1.04)
        slack = max(0.0, (CELL - side) / 2 - 1) if thing.count == 1 else 2.0
        x, y = (np.array([column, row]) + 0.5) * CELL + rng.uniform(-slack, slack, 2)
        sprite = _sprite(thing.kind, thing.colour, round(side * scale), thing.facing == "right")
        for dx, dy in _SPOTS[thing.count]:
            corner = (round((x + dx) * scale - sprite.width / 2), round((y + dy) * scale - sprite.height / 2))
            canvas.paste(sprite, corner, sprite)
    return canvas


@lru_cache(maxsize=16384)
def _sprite(kind: str, colour: str, side: int, mirrored: bool) -> Image.Image:
    sprite = _dyed(kind, colour)
    ratio = side / max(sprite.size)
    sprite = sprite.resize(
        (max(1, round(sprite.width * ratio)), max(1, round(sprite.height * ratio))), Image.Resampling.LANCZOS
    )
    return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else sprite


_HUES = {"red": 0, "orange": 20, "yellow": 36, "green": 90, "blue": 150, "purple": 195}
"""Pillow's hues, 0 to 255."""
_NEAR = 22


@lru_cache(maxsize=512)
def _dyed(kind: str, colour: str) -> Image.Image:
    """The full-size pictograph, with the hue of its usual colour replaced by another one."""
    with Image.open(SPRITES / f"{kind}.png") as file:
        sprite = file.convert("RGBA")
    usual = KINDS[kind].colour
    if colour == usual:
        return sprite
    assert KINDS[kind].dyed
    assert colour in DYES
    pixels = np.asarray(sprite.convert("RGB").convert("HSV")).astype(int)
    apart = np.abs((pixels[..., 0] - _HUES[usual] + 128) % 256 - 128)
    painted = (apart < _NEAR) & (pixels[..., 1] > 70)
    pixels[..., 0] = np.where(painted, _HUES[colour], pixels[..., 0])
    rgb = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
    rgb.putalpha(sprite.getchannel("A"))
    return rgb


_BASE = {
    "grass": (124, 172, 84),
    "sand": (226, 202, 148),
    "snow": (236, 241, 247),
    "sea": (92, 160, 205),
    "night": (38, 42, 78),
    "brick": (176, 104, 84),
    "floor": (190, 142, 96),
}


@lru_cache(maxsize=128)
def _ground(ground: str, variant: int, pixels: int) -> NDArray[np.float32]:
    """Texture of shape (pixels, pixels, 3), lit from the upper left."""
    rng = np.random.default_rng((variant, list(GROUNDS).index(ground), 3))
    y, x = np.mgrid[0:pixels, 0:pixels].astype(np.float32) * (UNIT / pixels)
    shade = np.ones_like(x)
    grain = 0.03
    if ground == "grass":
        blades = rng.normal(size=(UNIT // 4, UNIT // 2))
        shade += 0.07 * blades[(y // 4).astype(int), (x // 2).astype(int)]
    elif ground == "sand":
        shade += 0.04 * np.sin(y * 0.5 + 2.5 * np.sin(x * 0.06 + variant))
    elif ground == "snow":
        shade -= 0.03 * (np.sin(x * 0.07 + variant) * np.sin(y * 0.05 + 1) + 1)
        grain = 0.015
    elif ground == "sea":
        shade += 0.10 * np.sin(y * 0.9 + 1.5 * np.sin(x * 0.11 + variant))
    elif ground == "night":
        stars = rng.random((UNIT // 2, UNIT // 2)) < 0.006
        shade += 3.2 * stars[(y // 2).astype(int), (x // 2).astype(int)]
    elif ground == "brick":
        course = (y // 9).astype(int)
        shift = (x + 10 * (course % 2) + variant).astype(int)
        joint = (y % 9 < 1.2) | (shift % 20 < 1.2)
        shade = np.where(joint, 1.28, 1 + 0.10 * rng.normal(size=(20, 12))[course, shift // 20])
    elif ground == "floor":
        plank = (x // 14).astype(int)
        shade = np.where(x % 14 < 1.0, 0.72, 1 + 0.07 * rng.normal(size=16)[plank])
        shade = shade + 0.03 * np.sin(y * 0.35 + 4 * plank)
    light = 1.10 - 0.14 * (x / UNIT) - 0.10 * (y / UNIT)
    noise = rng.normal(scale=grain, size=(pixels, pixels))
    colour = np.array(_BASE[ground], dtype=np.float32)
    texture: NDArray[np.float32] = (colour * ((shade + noise) * light)[..., None]).astype(np.float32)
    return texture


SAMPLE = Path(__file__).parent / "sample"
"""The packaged sample: images and `truth.jsonl`."""


def write_sample(count: int = 24) -> None:
    """Renders the packaged sample: the first scenes from seed 0 with at least three things."""
    SAMPLE.mkdir(exist_ok=True)
    lines: list[str] = []
    seed = 0
    while len(lines) < count:
        scene = sample(seed)
        seed += 1
        if len(scene.things) < 3:
            continue
        name = f"{len(lines):02}.jpg"
        render(scene).save(SAMPLE / name, quality=90)
        lines.append(json.dumps({"image": name, "truth": scene.truth()}))
    (SAMPLE / "truth.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_sample()
