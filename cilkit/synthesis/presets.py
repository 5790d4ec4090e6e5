"""Presets of known text-to-image models, from assets/generators.yaml, which also says how each setting is known."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cilkit.errors import UserError, near_name

FILE = Path(__file__).resolve().parent.parent / "assets" / "generators.yaml"


@dataclass(frozen=True)
class Preset:
    """Settings of one model; `fast` holds the declared faster variants."""

    name: str = ""
    model: str = ""
    licence: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    fast: dict[str, dict[str, Any]] = field(default_factory=dict)

    def with_fast(self, fast: str) -> dict[str, Any]:
        """The settings with those of a fast variant over them; UserError where the model has no such variant."""
        if fast and fast not in self.fast:
            known = f"has {', '.join(self.fast)}" if self.fast else "has none"
            raise UserError(
                f"fast={fast!r}: the preset {self.name or '(none)'!r} {known}; leave fast empty, or set steps, "
                "scheduler or cache themselves"
            )
        return {**self.settings, **self.fast.get(fast, {})}


@cache
def presets() -> dict[str, Preset]:
    """Every preset by its name."""
    import yaml

    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: _preset(name, dict(entry)) for name, entry in content.items()}


def preset(name: str) -> Preset:
    """One preset; UserError for an unknown name."""
    if name not in presets():
        raise UserError(f"preset {name!r} is unknown{near_name(name, presets())}; known are {', '.join(presets())}")
    return presets()[name]


def preset_of(model: str) -> Preset:
    """The first preset of a hub name ("embedded" included), an empty one for a model that has none."""
    return next((one for one in presets().values() if one.model == model), Preset())


def _preset(name: str, entry: dict) -> Preset:
    model, fast = entry.pop("model"), entry.pop("fast", {})
    settings, *variants = ({key: value for key, (value, _) in group.items()} for group in (entry, *fast.values()))
    return Preset(name, model, settings.pop("licence"), settings, dict(zip(fast, variants, strict=True)))
