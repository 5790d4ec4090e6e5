"""A trie over token sequences: what several answers begin with is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Trie:
    """Every beginning of some answers as a node, parents before children; the root, node -1, is what comes before them.

    An answer's last token is a leaf, which nothing follows: only inner nodes are shown to a language model.
    """

    tokens: torch.Tensor  # int64 (nodes,), of the inner nodes
    depth: torch.Tensor  # int64 (nodes,), from 0
    ancestors: torch.Tensor  # bool (nodes, nodes): whose row may look at which column, itself included
    before: torch.Tensor  # int64 (answers, longest): the inner node before each token, counted from 1; 0 is the root
    next: torch.Tensor  # int64 (answers, longest): the token, 0 beyond an answer's end
    inside: torch.Tensor  # bool (answers, longest)

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Trie:
        nodes: dict[tuple[int, ...], int] = {}  # beginning -> node
        for answer in answers:
            for end in range(1, len(answer)):
                nodes.setdefault(tuple(answer[:end]), len(nodes))
        shape = len(answers), max(map(len, answers))
        before, following = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        inside = torch.zeros(shape, dtype=torch.bool)
        for row, answer in enumerate(answers):
            for place, token in enumerate(answer):
                before[row, place] = nodes[tuple(answer[:place])] + 1 if place else 0
                following[row, place], inside[row, place] = token, True
        ancestors = torch.eye(len(nodes), dtype=torch.bool)
        for beginning, node in nodes.items():  # parents were entered before their children
            if len(beginning) > 1:
                ancestors[node] |= ancestors[nodes[beginning[:-1]]]
        tokens = torch.tensor([beginning[-1] for beginning in nodes], dtype=torch.int64)
        depth = torch.tensor([len(beginning) - 1 for beginning in nodes], dtype=torch.int64)
        parts = (tokens, depth, ancestors, before, following, inside)
        return cls(*(part.to(device) for part in parts))

    def __len__(self) -> int:
        return len(self.tokens)
