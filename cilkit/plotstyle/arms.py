"""What each learner and each usual arm is drawn with, in every notebook, on the site and in the README.

A name has one colour, marker and line style. A plug-in changes the line, another head the marker: the colour says which
learner it is. Names that stand nowhere here get a style by their letters that no other of the figure has.
"""

import re
import zlib
from collections.abc import Iterable

# Okabe and Ito's palette where it has three times the luminance contrast to white; brown and violet for its orange, sky
# blue and yellow, which have not. Readers without red or green cones tell all pairs apart (tests/test_plotstyle.py).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#662800", "#5A44E5")
BLUE, RED, GREEN, PINK, BROWN, VIOLET = COLOURS
SHAPES = "osD^vPX<>ph*"
LINES = {  # of the last plug-in; the dotted line is chance's, the dashed one joint training's
    "": "-",
    "alignment": (0, (6, 1.5)),
    "synthetic replay": "-.",
    "generative replay": (0, (4, 1, 1, 1, 1, 1)),
    "gaussian replay": (0, (8, 1, 2, 1)),
    "future replay": (0, (3, 1)),
}
PLUGINS = dict(zip(LINES, ("", *"d8Hp*"), strict=True))  # their markers: points and bars have no line
HEADS = {"raw": "x", "aligned": "+", "nme": "1", "constrained": "2", "written": "3", "nearest name": "4"}
LEARNERS = {
    "finetune": (RED, "s"),
    "slow learner": (PINK, "v"),
    "slca": (BLUE, "o"),
    "slca pp": (BLUE, "D"),
    "nearest mean": (GREEN, "^"),
    "ewc": (BROWN, "P"),
    "lwf": (PINK, "o"),
    "lwm": (GREEN, "X"),
    "icarl": (VIOLET, "D"),
    "mae cil": (BROWN, ">"),
    "bic": (RED, "^"),
    "wa": (BLUE, "s"),
    "lucir": (BROWN, "s"),
    "podnet": (PINK, "D"),
    "der": (BROWN, "D"),
    "foster": (GREEN, "v"),
    "gdumb": (VIOLET, "s"),
    "l2p": (RED, "D"),
    "dualprompt": (PINK, "P"),
    "coda prompt": (VIOLET, "P"),
    "aper": (GREEN, "o"),
    "simplecil": (GREEN, "s"),
    "ranpac": (BLUE, "^"),
    "gmm": (RED, "o"),
    "gmm linear": (BLUE, "P"),
}
ARMS = {  # backbones and what is done with paintings: the arms of the notebooks' own parameter files
    "no pre training": (BROWN, "v"),
    "foreseen": (BLUE, "h"),
    "overlap filtered": (GREEN, "P"),
    "half foreseen": (VIOLET, "*"),
    "unrelated": (RED, "X"),
    "shuffled": (PINK, "s"),
    "renderings": (VIOLET, "o"),
    "distillation": (PINK, "^"),
    "replay": (VIOLET, "X"),
    "both": (BLUE, "<"),
    "the same bytes of real images": (GREEN, "h"),
    "nothing": (RED, "P"),
    "zero shot": (VIOLET, "<"),
    "real": (BLUE, "o"),
    "real, train": (BLUE, "o"),
    "real, training": (BLUE, "o"),
    "real, test": (GREEN, "s"),
    "painted": (RED, "D"),
    "paintings": (RED, "D"),
    "synthetic": (RED, "D"),
}
SAME = {  # other names of the same thing
    "sequential fine tuning": "finetune",
    "fine tuning": "finetune",
    "slca, raw": "slow learner",
    "slca++": "slca pp",
    "nearest class mean": "nearest mean",
    "class means": "nearest mean",
    "ncm": "nearest mean",
    "linear head": "gmm linear",
    "none": "no pre training",
    "foreseen realm": "foreseen",
    "foreseen, overlap filtered": "overlap filtered",
    "unrelated realm": "unrelated",
    "shuffled labels": "shuffled",
    "font renderings": "renderings",
    "joint training": "joint",
}
KNOWN = {name: (colour, marker, "-") for name, (colour, marker) in (LEARNERS | ARMS).items()}
KNOWN |= {"joint": ("#000000", "*", "--"), "chance": ("#000000", "x", ":")}


def style_of(name: str) -> dict:
    """What a learner or an arm of this name is drawn with in every figure: {"color", "marker", "linestyle"}."""
    return styles_of([name])[name]


def styles_of(names: Iterable[str]) -> dict[str, dict]:
    """The style of each name of one figure. Known names have their own; others avoid the colours already there.

    Where all colours are taken they still differ from every other name in colour and marker.
    """
    names = list(dict.fromkeys(names))
    found: dict[str, tuple] = {}
    for name in names:
        if look := _known(name):
            found[name] = _free(name, list(found.values()), look)
    for name in names:
        if name not in found:
            found[name] = _free(name, list(found.values()))
    return {name: dict(zip(("color", "marker", "linestyle"), found[name], strict=True)) for name in names}


def _known(name: str) -> tuple | None:
    plain = re.sub(r"[\s_-]+", " ", str(name)).strip().casefold()
    plain = SAME.get(plain, plain)
    if plain in KNOWN:
        return KNOWN[plain]
    rest, _, head = plain.rpartition(", ")
    if head not in HEADS:
        rest, head = plain, ""
    base, *plugins = SAME.get(rest, rest).split("+")
    base = SAME.get(base, base)
    if base not in LEARNERS or not {*plugins} <= {*LINES}:
        return None
    colour, marker = LEARNERS[base]
    last = plugins[-1] if plugins else ""
    return colour, HEADS.get(head) or PLUGINS[last] or marker, LINES[last]


def _free(name: str, taken: list[tuple], wanted: tuple | None = None) -> tuple:
    """The wanted look, with another marker where it is taken; else one of a colour not in the figure, if one is left.

    Where the search begins, the name's letters say.
    """
    used = [look[0] for look in taken]
    start = zlib.crc32(str(name).encode())
    order = [COLOURS[(start + step) % len(COLOURS)] for step in range(len(COLOURS))]
    colour, marker, line = wanted or (min(order, key=used.count), "", "-")
    first = start // len(COLOURS) % len(SHAPES)
    shapes = [*marker, *SHAPES[first:], *SHAPES[:first]]
    marker = next((one for one in shapes if (colour, one) not in {look[:2] for look in taken}), shapes[0])
    return colour, marker, line
