"""Prompt styles: how an image's prompt is made from its concept's.

paper        the concept's prompt, the same for every image of it: what Premonition's notebook does (read in source).
diversified  a background, a viewpoint and a lighting appended; every image of a class gets another combination until
             all of them have had their turn (our decision).
plain        "a photo of a NAME", without the description: the control arm (our decision).

A list of endings of one's own is a style too. What an image must *not* show is the generator's `negative_prompt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from cilkit.artifacts import canonical
from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    from cilkit.realms.realm import Concept

BACKGROUNDS = tuple(
    (
        "plain white background; plain grey background; dark background; blurred background; green background; blue "
        "sky behind; cloudy sky behind; in a meadow; in a forest; in a garden; on a wooden table; on a stone floor; "
        "on sand; on snow; on a gravel path; beside water; in front of a brick wall; in front of a hedge; in a city "
        "street; in a room; by a window; in the mountains; in a field; at dusk"
    ).split("; ")
)
VIEWPOINTS = tuple(
    (
        "close-up; seen from the front; seen from the side; seen from behind; seen from above; seen from below; "
        "three-quarter view; from a distance; filling the frame; off centre; at eye level; partly hidden"
    ).split("; ")
)
LIGHTINGS = tuple(
    (
        "soft daylight; bright sunlight; overcast light; golden evening light; early morning light; backlit; side "
        "light; deep shade; lamp light; flash; hazy light; high contrast"
    ).split("; ")
)


@dataclass(frozen=True)
class Style:
    """`template`: of the beginning, with fields {prompt} and {name}. `parts`: one ending of each list is appended."""

    name: str
    template: str = "{prompt}"
    parts: tuple[tuple[str, ...], ...] = ()

    @property
    def combinations(self) -> int:
        """Distinct prompts that one concept can have."""
        return prod(map(len, self.parts))

    def beginning(self, concept: Concept) -> str:
        """The part of the prompt that all images of a concept share."""
        return self.template.format(prompt=concept.prompt, name=concept.name)

    def endings(self, seed: int, class_name: str) -> Iterator[str]:
        """The endings of images 0, 1, 2 … of a class, without end: shuffled by seed and class alone, then repeated."""
        import numpy as np

        text = canonical(["style", int(seed), class_name])
        shuffle = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        order = shuffle.permutation(self.combinations).tolist()
        sizes = [len(part) for part in self.parts]
        while True:
            for number in order:
                chosen = np.unravel_index(number, sizes) if sizes else ()
                yield ", ".join(part[k] for part, k in zip(self.parts, chosen, strict=True))

    def longest(self, measure: Callable[[Sequence[str]], Sequence[int]]) -> str:
        """The longest ending by `measure` (texts -> lengths): what fits beside it fits beside all of them."""
        longest = []
        for part in self.parts:
            lengths = measure(part)
            longest.append(part[max(range(len(part)), key=lambda k: lengths[k])])
        return ", ".join(longest)


def joined(beginning: str, ending: str) -> str:
    """A whole prompt: the beginning loses its full stop where an ending follows."""
    return f"{beginning.rstrip('. ')}, {ending}" if ending else beginning


STYLES = {
    "paper": Style("paper"),
    "diversified": Style("diversified", parts=(BACKGROUNDS, VIEWPOINTS, LIGHTINGS)),
    "plain": Style("plain", template="a photo of a {name}"),
}


def style_of(style: str | Sequence[str] | Style) -> Style:
    """The style of this name, or one with these endings. UserError for an unknown name or an empty ending."""
    if isinstance(style, Style):
        return style
    if isinstance(style, str):
        if style not in STYLES:
            raise UserError(
                f"prompt style {style!r} is unknown{near_name(style, STYLES)}; take one of {', '.join(STYLES)}, "
                "or give a list of endings"
            )
        return STYLES[style]
    endings = tuple(style)
    if not endings or not all(isinstance(text, str) and text.strip() for text in endings):
        raise UserError(
            f"the prompt endings {list(endings)!r:.80} are not a list of texts; give at least one, none empty"
        )
    return Style("endings", parts=(tuple(text.strip() for text in endings),))
