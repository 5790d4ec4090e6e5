"""Captioned glyph renderings: what the embedded text-to-image generator learns from, and the control arm beside it.

A rendering is one symbol of a font that matplotlib ships, bent and thickened at random, blended by absolute difference
into a made-up colour field (the recipe by which `digits_photo` blends its scans into photographs), with a caption in
the object template of Premonition, `A photograph of {item}: {description}`. No real digit or photograph is read here.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cilkit.errors import UserError

SIZE = 32  # pixels on a side of every rendering
EM = 80  # pixels of the em square at which a glyph is first drawn
TEMPLATE = "A photograph of {item}: {description}"

_DIGITS = "zero one two three four five six seven eight nine".split()
_CHARACTERS = (
    {f"digit {word}": str(value) for value, word in enumerate(_DIGITS)}
    | {f"capital letter {letter}": letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    # Only the small letters whose shape is not that of the capital, so that two names never mean one shape.
    | {f"small letter {letter}": letter for letter in "abdefghnqrt"}
)
_ORNAMENTS = {
    "five-pointed star": "★",
    "hollow star": "☆",
    "six-pointed star": "✶",
    "sun with rays": "☀",
    "cloud": "☁",
    "umbrella": "☂",
    "snowflake": "❄",
    "telephone": "☎",
    "scissors": "✂",
    "airplane": "✈",
    "envelope": "✉",
    "ship wheel": "☸",
    "yin yang": "☯",
    "peace sign": "☮",
    "radiation sign": "☢",
    "star and crescent": "☪",
    "heart": "♥",
    "diamond": "♦",
    "club suit": "♣",
    "spade suit": "♠",
    "chess king": "♚",
    "chess queen": "♛",
    "chess rook": "♜",
    "chess bishop": "♝",
    "chess knight": "♞",
    "chess pawn": "♟",
    "musical note": "♪",
    "beamed notes": "♫",
    "sign of venus": "♀",
    "sign of mars": "♂",
    "sign of mercury": "☿",
    "trident": "♆",
    "anchor": "⚓",
    "pair of scales": "⚖",
    "gear": "⚙",
    "lightning bolt": "⚡",
    "hammer and pick": "⚒",
    "flag": "⚑",
    "atom": "⚛",
    "shamrock": "☘",
    "smiling face": "☺",
    "right arrow": "→",
    "up arrow": "↑",
    "square": "■",
    "triangle": "▲",
    "flower": "✿",
    "heavy cross": "✚",
}
FAMILIES: dict[str, tuple[str, ...]] = {"characters": tuple(_CHARACTERS), "ornaments": tuple(_ORNAMENTS)}
CONCEPTS: dict[str, str] = _CHARACTERS | _ORNAMENTS

# The text fonts among those that matplotlib ships. Left out: the size variants and the maths fonts, whose character
# maps are incomplete or point at other shapes, and LastResort, which has a box for everything.
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
HELD_OUT_FONTS = (
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Italic",
    "STIXGeneralBol",
    "cmss10",
)
_HAIRLINE = ("Serif", "STIX", "cmr", "cmb", "cmti")  # fonts whose thinnest strokes an erosion would cut through

WEIGHTS = {"thin": 5.0, "medium": 8.0, "thick": 13.0}  # stroke width in pixels of the EM drawing
SLANTS = {"upright": 0.0, "slanted": 0.28, "leaning back": -0.28}  # shear, dx / dy
COLOURS = {  # hue in turns; grey has no saturation
    "grey": None,
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.15,
    "green": 0.35,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.77,
    "pink": 0.9,
}
GROUNDS = ("dark", "light")
_FILLER = (
    "a the with and of in on its to one two single pair small large round curved straight vertical horizontal diagonal "
    "stroke strokes line lines loop loops bar bars stem top bottom middle left right side open closed crossing meeting "
    "written drawn printed handwritten bold fine sharp soft edges corner corners slightly tilted wide narrow tall "
    "short ink pen marker chalk paper board plain simple clear smooth rough texture background shape outline filled "
    "hollow arms points pointed tip base centre crown head foot tail hook curl angle parallel joined apart symbol "
    "sign figure character ornament icon letter digit number often sometimes usually without from above below into "
    "like an is it uneven steady quick careful ending starting across down up over under half full shaped"
).split()


@dataclass(frozen=True)
class Style:
    """What a caption may say about a rendering, and the renderer obeys. Values: keys of the tables of this module."""

    weight: str = "medium"
    slant: str = "upright"
    ground: str = "dark"
    colour: str = "grey"


def draw_style(rng: np.random.Generator) -> Style:
    """A style drawn at random, each attribute uniform over its table."""
    pick = lambda table: list(table)[rng.integers(len(table))]  # noqa: E731
    return Style(pick(WEIGHTS), pick(SLANTS), pick(GROUNDS), pick(COLOURS))


def caption(name: str, style: Style | None, rng: np.random.Generator) -> str:
    """A caption for the concept `name`: the object template, with the style named in part, in full or not at all, and
    with words that mean nothing mixed in, so that a generator trained on it bears free descriptions."""
    article = ("", "the ", "a ")[rng.integers(3)]
    parts = [] if style is None else _style_words(style, rng)
    parts = [part for part in parts if rng.random() < 0.6]
    if rng.random() < 0.6:
        parts.append(_filler(rng))
    rng.shuffle(parts)
    item = article + name
    if not parts:
        return f"A photograph of {item}"
    return TEMPLATE.format(item=item, description=", ".join(parts))


def vocabulary() -> list[str]:
    """Every text that captions are put together from, for the tokenizer."""
    looks = [*WEIGHTS, *SLANTS, *GROUNDS, *COLOURS, "white", "black", "strokes"]
    return ["A photograph of the a", *CONCEPTS, *looks, *_FILLER]


def _style_words(style: Style, rng: np.random.Generator) -> list[str]:
    mark = "light" if style.ground == "dark" else "dark"
    mark = {"light": ("light", "white"), "dark": ("dark", "black")}[mark][rng.integers(2)]
    return [f"{style.weight} strokes", style.slant, f"{mark} on {style.ground} {style.colour}"]


def _filler(rng: np.random.Generator) -> str:
    """1 to 18 words without meaning: known ones, made-up letter strings, and now and then another concept's name."""
    words = []
    for _ in range(rng.integers(1, 19)):
        if rng.random() < 0.15:
            words.append("".join(chr(97 + rng.integers(26)) for _ in range(rng.integers(2, 10))))
        else:
            words.append(_FILLER[rng.integers(len(_FILLER))])
    if rng.random() < 0.25:
        words.insert(rng.integers(len(words) + 1), list(CONCEPTS)[rng.integers(len(CONCEPTS))])
    return " ".join(words)


@cache
def font_path(font: str) -> Path:
    """Where matplotlib keeps a font of TRAIN_FONTS or HELD_OUT_FONTS."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.exists():
        raise UserError(f"font {font!r} is not among those that matplotlib ships; choose from {TRAIN_FONTS}")
    return path


@cache
def _characters_of(font: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_path(font))).get_charmap())


@cache
def fonts_for(name: str, fonts: tuple[str, ...] = TRAIN_FONTS) -> tuple[str, ...]:
    """Those of `fonts` that have the concept's glyph. Ornaments missing from all of them fall back to DejaVu Sans."""
    _check(name)
    code = ord(CONCEPTS[name])
    return tuple(font for font in fonts if code in _characters_of(font)) or ("DejaVuSans",)


def _check(name: str) -> None:
    if name not in CONCEPTS:
        raise UserError(
            f"no concept is called {name!r}; glyphs.CONCEPTS lists the {len(CONCEPTS)} that can be rendered"
        )


@cache
def _outline(name: str, font: str, weight: str) -> np.ndarray:
    """The glyph at EM size, thickened or thinned towards the weight, cropped to its ink: float32 (height, width)."""
    character = CONCEPTS[name]
    face = ImageFont.truetype(str(font_path(font)), EM)
    canvas = Image.new("L", (2 * EM, 2 * EM))
    ImageDraw.Draw(canvas).text((EM // 2, EM // 4), character, fill=255, font=face)
    ink = np.asarray(canvas) > 127
    perimeter = np.abs(np.diff(ink.astype(np.int8), axis=0)).sum() + np.abs(np.diff(ink.astype(np.int8), axis=1)).sum()
    change = (
        WEIGHTS[weight] - 2.0 * ink.sum() / max(perimeter, 1) * 1.2
    )  # the grid perimeter is about 1.2 times too long
    if name in FAMILIES["ornaments"]:
        change = {"thin": -1.0, "medium": 0.0, "thick": 2.0}[weight]  # filled shapes and fine detail bear little
    elif font.startswith(_HAIRLINE) or "Serif" in font:
        change = max(change, 0.0)
    radius = round(min(abs(change) / 2, 4.0 if change > 0 else 2.0))  # an erosion of more would cut strokes through
    if radius:
        canvas = canvas.filter((ImageFilter.MaxFilter if change > 0 else ImageFilter.MinFilter)(2 * radius + 1))
    canvas = canvas.crop(canvas.getbbox()).filter(ImageFilter.GaussianBlur(1.0))
    return np.pad(np.asarray(canvas, np.float32) / 255.0, 2)


def render(
    name: str,
    rng: np.random.Generator,
    font: str | None = None,
    style: Style | None = None,
    fonts: tuple[str, ...] = TRAIN_FONTS,
) -> np.ndarray:
    """One rendering of a concept: uint8 (SIZE, SIZE, 3), a pure function of the arguments and the generator's state.

    `font` names one font; without it, one of `fonts` that has the glyph is drawn. Without `style` one is drawn.
    """
    _check(name)
    choices = fonts_for(name, fonts)
    font = font or choices[rng.integers(len(choices))]
    style = style or draw_style(rng)
    scan = _bend(_outline(name, font, style.weight), SLANTS[style.slant], rng)  # (SIZE, SIZE)
    field = ground(style, rng)  # (SIZE, SIZE, 3)
    tint = 1.0 - rng.uniform(0.0, 0.25) * rng.random(3)
    strength = rng.uniform(0.8, 1.0) * tint
    image = np.abs(field - scan[..., None] * strength) + rng.normal(0.0, rng.uniform(0.0, 0.02), field.shape)
    return np.round(255 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _bend(outline: np.ndarray, shear: float, rng: np.random.Generator) -> np.ndarray:
    """The outline scaled, sheared, rotated, waved and placed at random: float64 (SIZE, SIZE) in [0, 1]."""
    height, width = outline.shape
    shear += rng.uniform(-0.1, 0.1)
    scale = rng.uniform(0.55, 0.95) * SIZE / height
    stretch = rng.uniform(0.75, 1.3)
    stretch = min(stretch, 0.97 * SIZE / (scale * (width + abs(shear) * height)))
    angle = np.radians(rng.uniform(-15.0, 15.0))
    slack = np.maximum(SIZE - scale * np.array([stretch * (width + abs(shear) * height), height]), 0.0) / 2
    centre = SIZE / 2 + rng.uniform(-1.0, 1.0, 2) * slack * 0.9
    fine = 2 * SIZE  # every pixel is the mean of four samples
    y, x = (np.mgrid[:fine, :fine] + 0.5) / 2.0
    x, y = x - centre[0], y - centre[1]
    wave, rate, phase = rng.uniform(0.0, 1.1, 2), rng.uniform(0.1, 0.35, 2), rng.uniform(0.0, 2 * np.pi, 2)
    x, y = x + wave[0] * np.sin(rate[0] * y + phase[0]), y + wave[1] * np.sin(rate[1] * x + phase[1])
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    x = (x + shear * y) / (scale * stretch) + width / 2
    y = y / scale + height / 2
    samples = _sample(outline, x - 0.5, y - 0.5).reshape(SIZE, 2, SIZE, 2).mean((1, 3))
    for _ in range(rng.integers(0, 4)):  # scans are soft: up to a deviation of 1.2 pixels
        samples = _blur(samples)
    return samples


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of a (height, width) image at real positions, 0 outside."""
    image = np.pad(image, 1)
    x = np.clip(x + 1, 0, image.shape[1] - 1.001)
    y = np.clip(y + 1, 0, image.shape[0] - 1.001)
    i, j = y.astype(int), x.astype(int)
    v, u = y - i, x - j
    top = image[i, j] * (1 - u) + image[i, j + 1] * u
    return top * (1 - v) + (image[i + 1, j] * (1 - u) + image[i + 1, j + 1] * u) * v


def _blur(image: np.ndarray) -> np.ndarray:
    """The taps (1/4, 1/2, 1/4) along both axes."""
    for axis in (0, 1):
        image = image / 2 + (np.roll(image, 1, axis) + np.roll(image, -1, axis)) / 4
    return image


def ground(style: Style, rng: np.random.Generator) -> np.ndarray:
    """A colour field (SIZE, SIZE, 3) in [0, 1]: a base colour, a gradient across it, and mild low-frequency texture."""
    dark = style.ground == "dark"
    value = rng.uniform(0.03, 0.32) if dark else rng.uniform(0.68, 1.0)
    saturation = 0.0 if COLOURS[style.colour] is None else rng.uniform(0.5, 1.0) if dark else rng.uniform(0.3, 0.65)
    hue = (COLOURS[style.colour] or 0.0) + rng.uniform(-0.03, 0.03)
    base = _rgb(hue, saturation + rng.uniform(0.0, 0.08), value)
    field = np.broadcast_to(base, (SIZE, SIZE, 3)).copy()
    for cells in (2, 4, 8):  # bilinear value noise, finer and weaker
        strength = rng.uniform(0.0, 0.3) / cells
        noise = rng.uniform(-1.0, 1.0, (cells + 1, cells + 1)) * strength
        axis = (np.arange(SIZE) + 0.5) / SIZE * cells
        grey = _sample(noise, *np.meshgrid(axis, axis))
        field += grey[..., None] * (1.0 + rng.uniform(-0.3, 0.3, 3))
    return np.clip(field, 0.0, 1.0)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour (3,) in [0, 1] from hue (turns), saturation and value, by the usual hexagon formula."""
    wheel = np.abs((hue + np.array([0.0, 2 / 3, 1 / 3])) % 1.0 * 6.0 - 3.0) - 1.0
    return value * (1.0 - min(saturation, 1.0) * (1.0 - np.clip(wheel, 0.0, 1.0)))


def render_set(
    names: list[str], per_class: int, seed: int, fonts: tuple[str, ...] = TRAIN_FONTS
) -> tuple[np.ndarray, np.ndarray]:
    """`per_class` renderings of every concept: images uint8 (len(names) * per_class, SIZE, SIZE, 3), labels int64.

    Rendering k of a class depends on (seed, name, k) alone, so a larger set begins with the smaller one's images.
    """
    order = {name: index for index, name in enumerate(CONCEPTS)}
    for name in names:
        _check(name)
    images = [
        render(name, np.random.default_rng([seed, order[name], k]), fonts=fonts)
        for name in names
        for k in range(per_class)
    ]
    return np.stack(images), np.repeat(np.arange(len(names)), per_class)
