"""What `cilkit doctor` says: this machine, this installation, and where it differs from the lock."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook.start import commit, shown


def findings() -> Iterator[str]:
    """One line for each finding; lines that begin with "!" ask for something to be done."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    sha = commit()
    home = artifacts.repository()
    where = f"commit {sha['sha']}{', with uncommitted changes' if sha['dirty'] else ''}" if sha else "not in git"
    yield f"repository {home or 'not found'}: {where}"
    try:
        root = artifacts.root()
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        yield f"artifacts in {shown(root)}, {shutil.disk_usage(there).free / 1e9:.0f} GB free"
    except UserError as error:
        yield f"! {error}"
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        yield "! PYTHONDONTWRITEBYTECODE is set: every kernel compiles its imports again; unset it."
    if os.environ.get("MPLBACKEND"):
        yield "! MPLBACKEND is set: figures vanish from notebooks; unset it."
    yield _device()
    if home:
        yield from differences(home / "requirements.lock")


def _device() -> str:
    try:
        import torch
    except ImportError as error:
        return f"! torch cannot be imported ({error}): install as the README says."
    if torch.cuda.is_available():
        return f"torch {torch.__version__} with {torch.cuda.get_device_name()}"
    return f"torch {torch.__version__}, no GPU ({torch.get_num_threads()} threads)"


def differences(lock: Path) -> Iterator[str]:
    """Installed packages whose version is not the lock's; a local part (2.15.0+cu130) does not count."""
    from packaging.requirements import Requirement

    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    count, differing = 0, 0
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line or line[0] in "# ":
            continue
        pin = Requirement(line)
        version = found.get(pin.name.lower())
        if version is None or (pin.marker and not pin.marker.evaluate()):
            continue  # of an extra or another platform
        count += 1
        if not pin.specifier.contains(version, prereleases=True):
            differing += 1
            yield f"  {pin.name} {version} is installed, the lock says {pin.specifier}"
    yield f"{count} packages compared with {lock.name}: {differing or 'none'} differ"
