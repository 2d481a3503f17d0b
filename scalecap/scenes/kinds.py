"""The vocabulary of the world: kinds of things with their attributes, grounds and places.

Sprites are pictographs of Noto Color Emoji (SIL OFL 1.1, `sprites/OFL.txt`), rendered from the font by
`python -m scalecap.scenes.kinds FONT.ttf`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

SPRITES = Path(__file__).parent / "sprites"


Level = Literal["high", "middle", "low"]


@dataclass(frozen=True)
class Kind:
    """One kind of thing: its fixed and its usual attributes."""

    name: str
    plural: str
    glyph: str
    colour: str
    """The usual colour, and the only one unless the kind is dyed."""
    parts: tuple[str, str]
    faces: bool
    """Whether it has a direction; the sprite faces left."""
    mistaken_for: str
    """The kind that looks most like it."""
    size: str
    """The usual size of a single one."""
    level: Level
    """The usual row of places: top, middle or bottom."""
    flock: bool
    """Whether groups of two or three are common."""
    dyed: bool
    """Whether it can have any of the colours in `DYES`."""


_TABLE = """
cat        cats         🐈 orange  pointed_ears,a_long_tail             yes fox        small low    alone -
tiger      tigers       🐅 striped dark_stripes,a_curved_tail           yes cat        large middle alone -
horse      horses       🐎 brown   a_dark_mane,four_hooves              yes camel      large middle alone -
cow        cows         🐄 spotted short_horns,a_pink_muzzle            yes horse      large low    alone -
pig        pigs         🐖 pink    a_flat_snout,a_curly_tail            yes sheep      small low    alone -
sheep      sheep        🐑 white   thick_wool,a_grey_face               yes pig        small low    flock -
camel      camels       🐪 tan     a_single_hump,long_legs              yes horse      large low    alone -
elephant   elephants    🐘 grey    a_long_trunk,white_tusks             yes camel      large middle alone -
rabbit     rabbits      🐇 grey    long_ears,a_round_tail               yes squirrel   small low    flock -
squirrel   squirrels    🐿 brown   a_bushy_tail,tiny_paws               yes rabbit     small low    alone -
turtle     turtles      🐢 green   a_dark_shell,short_legs              yes frog       small low    alone -
snake      snakes       🐍 green   a_forked_tongue,a_coiled_body        yes turtle     small low    alone -
fish       fish         🐟 blue    shiny_scales,pointed_fins            yes dolphin    small middle flock dyed
dolphin    dolphins     🐬 blue    a_back_fin,a_white_belly             yes fish       large middle alone -
duck       ducks        🦆 brown   a_green_head,a_yellow_bill           yes swan       small low    flock -
swan       swans        🦢 white   a_curved_neck,folded_wings           yes duck       small high   flock -
rooster    roosters     🐓 brown   a_red_comb,green_tail_feathers       yes parrot     small low    flock -
penguin    penguins     🐧 black   a_white_chest,orange_feet            yes owl        small low    flock -
parrot     parrots      🦜 green   a_red_head,a_hooked_beak             yes rooster    small high   alone -
bee        bees         🐝 yellow  black_bands,clear_wings              yes butterfly  small high   flock -
snail      snails       🐌 brown   a_spiral_shell,two_feelers           yes turtle     small low    flock -
dog        dogs         🐕 cream   floppy_ears,a_black_nose             no  cat        small low    alone -
crab       crabs        🦀 orange  two_claws,many_legs                  no  octopus    small low    alone -
octopus    octopuses    🐙 pink    curling_arms,many_suckers            no  crab       small low    alone -
owl        owls         🦉 brown   large_eyes,folded_wings              no  penguin    small high   alone -
butterfly  butterflies  🦋 orange  patterned_wings,thin_feelers         no  bee        small high   flock dyed
frog       frogs        🐸 green   a_wide_mouth,bulging_eyes            no  turtle     small low    alone -
fox        foxes        🦊 orange  white_cheeks,pointed_ears            no  cat        small middle alone -
car        cars         🚗 red     black_tires,side_windows             yes truck      large low    alone dyed
truck      trucks       🚚 white   an_orange_box,black_tires            yes bus        large low    alone -
scooter    scooters     🛵 yellow  two_wheels,a_dark_seat               yes bicycle    small low    alone dyed
train      trains       🚂 red     a_tall_chimney,iron_wheels           yes tractor    large middle alone -
ambulance  ambulances   🚑 white   a_blue_star,a_red_siren              yes truck      large low    alone -
helicopter helicopters  🚁 yellow  a_large_rotor,landing_skids          yes sailboat   large high   alone dyed
bus        buses        🚌 white   wide_windows,black_tires             no  truck      large middle alone -
tractor    tractors     🚜 green   large_wheels,a_glass_cab             no  train      large low    alone dyed
bicycle    bicycles     🚲 blue    thin_wheels,a_black_saddle           no  scooter    large low    alone -
sailboat   sailboats    ⛵ red     striped_sails,a_white_hull           no  helicopter large middle alone dyed
tree       trees        🌳 green   round_leaves,a_brown_trunk           no  pine       large middle flock -
pine       pines        🌲 green   pointed_branches,a_short_trunk       no  tree       large middle flock -
palm       palms        🌴 green   hanging_leaves,a_ringed_trunk        no  tree       large middle alone -
cactus     cacti        🌵 green   sharp_spines,two_arms                no  pine       large middle alone -
sunflower  sunflowers   🌻 yellow  a_dark_center,broad_leaves           no  rose       small middle flock -
rose       roses        🌹 red     layered_petals,a_green_stem          no  sunflower  small low    flock dyed
mushroom   mushrooms    🍄 red     white_dots,a_pale_stem               no  strawberry small low    flock dyed
apple      apples       🍎 red     a_green_leaf,a_brown_stem            no  strawberry small middle flock -
banana     bananas      🍌 yellow  a_soft_peel,a_pale_inside            no  lemon      small middle flock -
strawberry strawberries 🍓 red     tiny_seeds,a_leafy_top               no  apple      small low    flock -
lemon      lemons       🍋 yellow  a_pointed_tip,a_green_leaf           no  banana     small middle flock -
cake       cakes        🎂 cream   burning_candles,red_berries          no  drum       large middle alone -
carrot     carrots      🥕 orange  a_leafy_top,thin_rings               no  banana     small low    flock -
house      houses       🏠 cream   a_pitched_roof,a_wooden_door         no  castle     large middle alone -
castle     castles      🏰 grey    red_flags,stone_towers               no  house      large middle alone -
tent       tents        ⛺ orange  an_open_flap,sloping_sides           no  castle     large middle alone dyed
umbrella   umbrellas    ☂ purple  a_curved_handle,a_pointed_top        no  balloon    large high   alone -
ball       balls        ⚽ white   black_patches,a_round_shape          no  clock      small low    alone -
guitar     guitars      🎸 red     six_strings,a_long_neck              no  umbrella   large middle alone dyed
drum       drums        🥁 red     two_sticks,a_white_skin              no  cake       large low    alone dyed
chair      chairs       🪑 brown   four_legs,a_straight_back            no  bell       large low    alone -
clock      clocks       ⏰ red     two_hands,round_bells                no  ball       small high   alone dyed
book       books        📕 red     a_hard_cover,white_pages             no  backpack   small middle flock dyed
balloon    balloons     🎈 red     a_thin_string,a_shiny_spot           no  apple      small high   flock dyed
bell       bells        🔔 golden  a_round_clapper,a_flared_rim         no  hat        small high   alone -
hat        hats         🎩 black   a_red_band,a_stiff_brim              no  bell       small middle alone -
backpack   backpacks    🎒 red     padded_straps,a_front_pocket         no  book       small low    alone dyed
"""


def _kinds() -> dict[str, Kind]:
    kinds = {}
    for line in _TABLE.strip().splitlines():
        name, plural, glyph, colour, parts, faces, mistaken_for, size, level, flock, dyed = line.split()
        first, second = parts.replace("_", " ").split(",")
        kinds[name] = Kind(
            *(name, plural, glyph, colour, (first, second), faces == "yes", mistaken_for, size),
            level=cast(Level, level),
            flock=flock == "flock",
            dyed=dyed == "dyed",
        )
    return kinds


KINDS: dict[str, Kind] = _kinds()
"""All kinds by name."""

DYES: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple")
"""Colours that dyed kinds may have besides their usual one."""

COLOURS: tuple[str, ...] = tuple(sorted({kind.colour for kind in KINDS.values()} | set(DYES)))
"""All colours."""

GROUNDS: dict[str, str] = {
    "grass": "on grass",
    "sand": "on sand",
    "snow": "on snow",
    "sea": "at sea",
    "night": "at night",
    "brick": "against a brick wall",
    "floor": "on a wooden floor",
}
"""Grounds and their phrases."""

PLACES: tuple[str, ...] = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the center", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
"""The nine places, row by row."""

NUMBERS = {1: "one", 2: "two", 3: "three"}


def cut_sprites(font: Path) -> None:
    """Writes one cropped PNG per kind, from Noto Color Emoji at its only bitmap size (109)."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 109)
    for kind in KINDS.values():
        canvas = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((16, 16), kind.glyph, font=face, embedded_color=True)
        canvas.crop(canvas.getbbox()).save(SPRITES / f"{kind.name}.png", optimize=True)


if __name__ == "__main__":
    import sys

    cut_sprites(Path(sys.argv[1]))
