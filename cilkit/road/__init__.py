"""The verbs of the notebooks: each finds its artifact or makes it.

    realm    = foresee("handwritten characters")
    images   = paint(realm, per_class=52, seed=0)
    backbone = pretrain(images, epochs=30)
    outcome  = run("slca", stream("digits_photo"), backbone=backbone)

An input is given as the object of the verb before, as an artifact's name or folder, or as a parameter file of the
notebook before (`params/03_pretraining/foreseen.yaml`): then what that file describes is found or made first. Nothing
heavy is imported unless something has to be made.
"""

from cilkit.road.aligning import Aligned, prealign
from cilkit.road.answering import answer
from cilkit.road.curating import curate, score
from cilkit.road.described import images_of, realm_of
from cilkit.road.exploring import explore
from cilkit.road.foreseeing import correct, foresee, freeze, without_overlap
from cilkit.road.inputs import from_params, parameters_of
from cilkit.road.learning import compare, learn, probe, reference, run, stream
from cilkit.road.opening import open
from cilkit.road.painting import paint, painter_of
from cilkit.road.pretraining import Pretrained, pretrain

__all__ = [
    "Aligned",
    "answer",
    "Pretrained",
    "compare",
    "correct",
    "curate",
    "explore",
    "foresee",
    "freeze",
    "from_params",
    "images_of",
    "learn",
    "open",
    "paint",
    "painter_of",
    "parameters_of",
    "prealign",
    "pretrain",
    "probe",
    "realm_of",
    "reference",
    "run",
    "score",
    "stream",
    "without_overlap",
]
