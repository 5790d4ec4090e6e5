"""cilkit: the thin helper of a notebook-first workbook for class-incremental learning with generative models.

The verbs that notebooks use stand here; each is imported when it is first called, and heavy libraries later still.
"""

import importlib as _importlib
import os as _os

# Set before torch is first imported: threads that spin while they wait stall each other on a shared machine.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(["foresee", "without_overlap", "paint", "pretrain", "stream", "run", "learn", "compare"], "road"),
    **dict.fromkeys(
        ["prealign", "answer", "correct", "freeze", "painter_of", "score", "curate", "probe", "reference"], "road"
    ),
    **dict.fromkeys(["from_params", "parameters_of"], "road"),
    **dict.fromkeys(["open", "explore"], "road"),
    "results": "road.gathering",
    "gallery": "road.looking",
    "choose": "road.choosing",
    "gap": "road.gaps",
    "background": "road.background",
    "start": "workbook.start",
    "watch": "workbook.watching",
    "Run": "runs",
    "Learner": "learners",
    "ImageSet": "data.imagesets",
    "UserError": "errors",
    "Stopped": "errors",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cilkit' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    return getattr(_importlib.import_module(f"cilkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
