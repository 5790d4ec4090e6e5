"""Realms: the classes that may come, foreseen by a language model from a theme's name (Premonition, stage 1)."""

from cilkit.realms.audit import SAME, audit, overlap
from cilkit.realms.backends import Replayed, kept_realms
from cilkit.realms.foresight import foresee
from cilkit.realms.models import LanguageModel
from cilkit.realms.parsing import Report
from cilkit.realms.realm import Concept, Realm, Reply

__all__ = [
    "SAME",
    "Concept",
    "LanguageModel",
    "Realm",
    "Replayed",
    "Reply",
    "Report",
    "audit",
    "foresee",
    "kept_realms",
    "overlap",
]
