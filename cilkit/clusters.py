"""Ray, where it is installed: loaded and connected to when it is asked for."""

from __future__ import annotations

import os
from typing import Any

from cilkit.errors import UserError, reason_of


def ray_module(otherwise: str) -> Any:
    """The module `ray`. otherwise: the executor to take where it is not installed, for the sentence that says so."""
    try:
        import ray
    except ImportError:
        raise UserError(
            f'executor="ray" needs Ray, which is not installed; pip install -e ".[scale]", or take "{otherwise}"'
        ) from None
    return ray


def connect(ray: Any, address: str) -> bool:
    """Connect this process, unless it is; False if it was. address: of a running cluster ("auto" finds this machine's),
    "" starts one here, which ends with `ray.shutdown()`."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    try:
        try:
            _init(ray, address)
        except Exception:
            if address:
                raise
            ray.shutdown()
            _init(ray, address)  # Ray gives itself 30 s to start, which a busy machine may miss once
    except Exception as error:  # a client raises many unrelated classes
        if not address:
            raise UserError(
                f"Ray did not start on this machine ({reason_of(error)}): try again when it is less busy."
            ) from None
        raise UserError(
            f"no Ray cluster answers at {address!r} ({reason_of(error)}); start one with `ray start --head`, or leave "
            "the address empty to use this machine"
        ) from None
    return True


def _init(ray: Any, address: str) -> None:
    ray.init(address=address or "local", include_dashboard=None if address else False, log_to_driver=False)
