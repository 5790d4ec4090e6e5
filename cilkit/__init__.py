"""cilkit: the thin helper of a notebook-first workbook for class-incremental learning with generative models."""

import os as _os

# Set before torch is first imported: threads that spin while they wait stall each other on a shared machine.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
