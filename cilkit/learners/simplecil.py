"""SimpleCIL (Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024).

The frozen backbone's class means are the classifier, by cosine similarity: each task's training images pass once,
prepared as test images are, and nothing is trained. RanPAC's "NCM only" row is the same (both read in the codes).
"""

from __future__ import annotations

from dataclasses import dataclass

from cilkit.learners.nearest_mean import NearestMean, cosine_to


@dataclass(frozen=True)
class SimpleCILHyper:
    recipe: str = "none"  # of the test images, which is what class means are taken from as well
    image_size: int = 0
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: this learner has none


class SimpleCIL(NearestMean):
    Hyper = SimpleCILHyper

    def heads(self):
        import torch

        return {"means": cosine_to(torch.from_numpy(self.means).to(self.backbone.device))}


LEARNER = SimpleCIL  # what this file's name stands for
