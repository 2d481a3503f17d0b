"""What there is in the world: kinds of things with their fixed facts, grounds and places.

Sprites are pictographs of Noto Color Emoji (SIL OFL 1.1, `sprites/OFL.txt`); `python -m
scalecap.scenes.kinds FONT.ttf` cuts them out of the font again.
"""

from dataclasses import dataclass
from pathlib import Path

SPRITES = Path(__file__).parent / "sprites"


@dataclass(frozen=True)
class Kind:
    """One kind of thing; every one of its kind has the same colour and parts."""

    name: str
    plural: str
    glyph: str
    colour: str
    parts: tuple[str, str]
    faces: bool
    """Whether left and right differ; the sprite itself faces left."""
    mistaken_for: str
    """The kind that a careless observer takes it for."""


_TABLE = """
cat       cats        🐈 orange pointed_ears,a_long_tail yes fox
tiger     tigers      🐅 striped dark_stripes,a_curved_tail yes cat
horse     horses      🐎 brown a_dark_mane,four_hooves yes camel
cow       cows        🐄 spotted short_horns,a_pink_muzzle yes horse
pig       pigs        🐖 pink a_flat_snout,a_curly_tail yes sheep
sheep     sheep       🐑 white thick_wool,a_grey_face yes pig
camel     camels      🐪 tan a_single_hump,long_legs yes horse
elephant  elephants   🐘 grey a_long_trunk,white_tusks yes camel
rabbit    rabbits     🐇 grey long_ears,a_round_tail yes squirrel
squirrel  squirrels   🐿 brown a_bushy_tail,tiny_paws yes rabbit
turtle    turtles     🐢 green a_dark_shell,short_legs yes frog
snake     snakes      🐍 green a_forked_tongue,a_coiled_body yes turtle
fish      fish        🐟 blue shiny_scales,pointed_fins yes dolphin
dolphin   dolphins    🐬 blue a_back_fin,a_white_belly yes fish
duck      ducks       🦆 brown a_green_head,a_yellow_bill yes swan
swan      swans       🦢 white a_curved_neck,folded_wings yes duck
rooster   roosters    🐓 brown a_red_comb,green_tail_feathers yes parrot
penguin   penguins    🐧 black a_white_chest,orange_feet yes owl
parrot    parrots     🦜 green a_red_head,a_hooked_beak yes rooster
bee       bees        🐝 yellow black_bands,clear_wings yes butterfly
snail     snails      🐌 brown a_spiral_shell,two_feelers yes turtle
dog       dogs        🐕 cream floppy_ears,a_black_nose no cat
crab      crabs       🦀 orange two_claws,many_legs no octopus
octopus   octopuses   🐙 pink curling_arms,many_suckers no crab
owl       owls        🦉 brown large_eyes,folded_wings no penguin
butterfly butterflies 🦋 orange patterned_wings,thin_feelers no bee
frog      frogs       🐸 green a_wide_mouth,bulging_eyes no turtle
fox       foxes       🦊 orange white_cheeks,pointed_ears no cat
car       cars        🚗 red black_tires,side_windows yes truck
truck     trucks      🚚 white an_orange_box,black_tires yes bus
scooter   scooters    🛵 yellow two_wheels,a_dark_seat yes bicycle
train     trains      🚂 red a_tall_chimney,iron_wheels yes tractor
ambulance ambulances  🚑 white a_blue_star,a_red_siren yes truck
helicopter helicopters 🚁 yellow a_large_rotor,landing_skids yes sailboat
bus       buses       🚌 white wide_windows,black_tires no truck
tractor   tractors    🚜 green large_wheels,a_glass_cab no train
bicycle   bicycles    🚲 blue thin_wheels,a_black_saddle no scooter
sailboat  sailboats   ⛵ red striped_sails,a_white_hull no helicopter
tree      trees       🌳 green round_leaves,a_brown_trunk no pine
pine      pines       🌲 green pointed_branches,a_short_trunk no tree
palm      palms       🌴 green hanging_leaves,a_ringed_trunk no tree
cactus    cacti       🌵 green sharp_spines,two_arms no pine
sunflower sunflowers  🌻 yellow a_dark_center,broad_leaves no rose
rose      roses       🌹 red layered_petals,a_green_stem no sunflower
mushroom  mushrooms   🍄 red white_dots,a_pale_stem no strawberry
apple     apples      🍎 red a_green_leaf,a_brown_stem no strawberry
banana    bananas     🍌 yellow a_soft_peel,a_pale_inside no lemon
strawberry strawberries 🍓 red tiny_seeds,a_leafy_top no apple
lemon     lemons      🍋 yellow a_pointed_tip,a_green_leaf no banana
cake      cakes       🎂 cream burning_candles,red_berries no drum
carrot    carrots     🥕 orange a_leafy_top,thin_rings no banana
house     houses      🏠 cream a_pitched_roof,a_wooden_door no castle
castle    castles     🏰 grey red_flags,stone_towers no house
tent      tents       ⛺ orange an_open_flap,sloping_sides no castle
umbrella  umbrellas   ☂ purple a_curved_handle,a_pointed_top no balloon
ball      balls       ⚽ white black_patches,a_round_shape no clock
guitar    guitars     🎸 red six_strings,a_long_neck no umbrella
drum      drums       🥁 red two_sticks,a_white_skin no cake
chair     chairs      🪑 brown four_legs,a_straight_back no bell
clock     clocks      ⏰ red two_hands,round_bells no ball
book      books       📕 red a_hard_cover,white_pages no backpack
balloon   balloons    🎈 red a_thin_string,a_shiny_spot no apple
bell      bells       🔔 golden a_round_clapper,a_flared_rim no hat
hat       hats        🎩 black a_red_band,a_stiff_brim no bell
backpack  backpacks   🎒 red padded_straps,a_front_pocket no book
"""


def _kinds() -> dict[str, Kind]:
    kinds = {}
    for line in _TABLE.strip().splitlines():
        name, plural, glyph, colour, parts, faces, mistaken_for = line.split()
        first, second = parts.replace("_", " ").split(",")
        kinds[name] = Kind(name, plural, glyph, colour, (first, second), faces == "yes", mistaken_for)
    return kinds


KINDS: dict[str, Kind] = _kinds()
"""All kinds by name."""

GROUNDS: dict[str, str] = {
    "grass": "on grass",
    "sand": "on sand",
    "snow": "on snow",
    "sea": "at sea",
    "night": "at night",
    "brick": "against a brick wall",
    "floor": "on a wooden floor",
}
"""Grounds and the words that say them."""

EXPECTED: dict[str, tuple[str, ...]] = {
    "grass": ("tree", "sheep"),
    "sand": ("palm", "crab"),
    "snow": ("pine", "penguin"),
    "sea": ("fish", "sailboat"),
    "night": ("owl", "tent"),
    "brick": ("bicycle", "cat"),
    "floor": ("chair", "ball"),
}
"""What a careless observer of a ground expects to see there."""

PLACES: tuple[str, ...] = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the center", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
"""The nine places, row by row."""

NUMBERS = {1: "one", 2: "two", 3: "three"}


def cut_sprites(font: Path) -> None:
    """Write one cropped PNG a kind, from Noto Color Emoji at its only bitmap size (109)."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 109)
    for kind in KINDS.values():
        canvas = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((16, 16), kind.glyph, font=face, embedded_color=True)
        canvas.crop(canvas.getbbox()).save(SPRITES / f"{kind.name}.png", optimize=True)


if __name__ == "__main__":
    import sys

    cut_sprites(Path(sys.argv[1]))
