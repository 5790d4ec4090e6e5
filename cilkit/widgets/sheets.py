"""A contact sheet as a small PNG: what stands for a gallery where nobody can click."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cilkit.plotstyle import COLOURS

LIMIT = 150_000  # bytes, at most: the sheet is saved with the notebook
TRIES = (
    (64, 256),
    (64, 128),
    (64, 48),
    (48, 48),
    (48, 24),
    (32, 24),
)  # pixels of a picture and colours, until it is small enough
TILE = 84  # pixels from one picture to the next
LINE = 11  # and from one line of text to the next
INK, FAINT, PAPER = "#1b1b1b", "#55595e", "#ffffff"
# state: the sign under the picture, its colour, the border's width, and the length of its dashes (0: unbroken)
LOOKS = {"undecided": ("·", FAINT, 1, 0), "accepted": ("✓", COLOURS[0], 3, 0), "rejected": ("✗", COLOURS[1], 3, 4)}


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet: its encoded image, the texts under it, and its state, a key of LOOKS."""

    image: bytes
    name: str
    state: str
    more: str = ""


def sheet(tiles: Sequence[Tile], title: str, columns: int = 10, limit: int = LIMIT) -> bytes:
    """PNG of at most `limit` bytes, where the last of TRIES allows it: title, then the tiles in reading order."""
    pictures = [Image.open(io.BytesIO(tile.image)).convert("RGB") for tile in tiles]
    found = b""
    for side, colours in TRIES:
        drawn = _drawn(tiles, pictures, title, columns, side).quantize(colours, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG", optimize=True)
        found = buffer.getvalue()
        if len(found) <= limit:
            break
    return found


def _drawn(tiles: Sequence[Tile], pictures: list, title: str, columns: int, side: int) -> Image.Image:
    font = _font(10)
    columns = max(4, min(columns, len(tiles)))
    high = side + 3 * LINE + 16
    titles = _wrapped(title, columns * TILE - 8, font)
    top = LINE * len(titles) + 10
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * TILE, top + rows * high), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(titles):
        draw.text((4, 3 + number * LINE), line, INK, font)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        left, upper = number % columns * TILE, top + number // columns * high
        _tile(canvas, draw, tile, picture, left, upper, side, font)
    return canvas


def _tile(canvas, draw, tile: Tile, picture, left: int, upper: int, side: int, font) -> None:
    """A picture in the middle of its tile, its border, and three lines: what it is, what was decided, and more."""
    sign, colour, width, dash = LOOKS[tile.state]
    scale = side / max(picture.size)
    small = picture.resize([max(1, round(scale * length)) for length in picture.size], Image.Resampling.BILINEAR)
    x, y = left + (TILE - small.width) // 2, upper + 4 + (side - small.height) // 2
    canvas.paste(small, (x, y))
    frame = (x - width, y - width, x + small.width + width - 1, y + small.height + width - 1)
    draw.rectangle(frame, outline=colour, width=width)
    if dash:
        for at in range(0, max(small.size) + 2 * width, 2 * dash):  # gaps in the border
            for box in (
                (frame[0] + at, frame[1], frame[0] + at + dash - 1, frame[1] + width - 1),
                (frame[0] + at, frame[3] - width + 1, frame[0] + at + dash - 1, frame[3]),
                (frame[0], frame[1] + at, frame[0] + width - 1, frame[1] + at + dash - 1),
                (frame[2] - width + 1, frame[1] + at, frame[2], frame[1] + at + dash - 1),
            ):
                draw.rectangle((box[0], box[1], min(box[2], frame[2]), min(box[3], frame[3])), fill=PAPER)
    lines = ((tile.name, INK), (f"{sign} {tile.state}", colour), (tile.more, FAINT))
    for number, (text, ink) in enumerate(lines):
        text = _cut(text, TILE - 4, font)
        draw.text((left + TILE // 2, upper + side + 8 + number * LINE), text, ink, font, anchor="ma")


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # whose font has the signs and the letters of most European languages

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _cut(text: str, width: int, font) -> str:
    """One line of at most so many pixels, its end replaced by … where it is longer."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, width: int, font) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, _cut(word, width, font)]
    return lines
