"""The data card of an image set: what it shows, who foresaw and painted it, what was left out, what it overlaps with.

`card.json` holds the facts, `README.md` shows them. Realm, prompts, licences and reasons were written by models and
users: in the Markdown each of them is escaped, so that it can be nothing but text there. No dates and no paths: equal
facts give equal bytes.
"""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.realms.realm import Realm

CARD, README = "card.json", "README.md"
LONGEST = 300  # characters of one text that the Markdown shows; card.json holds all of it
SHOWN = 50  # classes that the Markdown lists; card.json lists all of them
PLAIN = set(" ,.-()'%+/=;:?!")  # punctuation that cannot begin markup inside a line or a table's cell
ENTITIES = {ord(char): f"&#{ord(char)};" for char in string.punctuation if char not in PLAIN}


def escaped(text: Any) -> str:
    """Any text, to stand inside a line of Markdown (or in HTML) as text and nothing else; at most LONGEST characters.

    Punctuation becomes numeric entities, which Markdown never takes for structure (CommonMark, section 2.5); control
    and direction-changing characters and line breaks become blanks.
    """
    text = "".join(char if char.isprintable() else " " for char in str(text))
    text = re.sub(r"\s+", " ", text).strip()
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.translate(ENTITIES).replace("://", "&#58;//").replace("www.", "www&#46;")  # no links by themselves


def card(
    *,
    realm: Realm | None = None,
    generator: Any = None,
    counts: Mapping[str, int],
    style: str = "",
    rejected: Mapping[str, int] | None = None,
    rules: Mapping[str, Any] | None = None,
    overlaps: Mapping[str, Mapping[str, Any]] | None = None,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts of a card.

    realm:     with its replies, whose models are named. generator: what painted, a `Generator`.
    counts:    images a class. style: the prompts' style. rejected: images left out, by reason, under these `rules`.
    overlaps:  as `overlaps_of` gives them. base: the "card" of the set that this one was chosen from, else None.
    """
    facts: dict[str, Any] = {"images": sum(counts.values()), "classes": dict(counts), "style": style}
    if realm is not None:
        facts["realm"] = {"name": realm.name, "kind": realm.kind, "concepts": len(realm)}
        facts["realm"] |= {"origin": realm.origin} if realm.origin else {}
        facts["realm"]["language_models"] = _language_models(realm)
    if generator is not None:
        about = {"id": generator.id, "digest": generator.digest, "settings": dict(generator.settings)}
        facts["generator"] = about | {"licence": getattr(generator, "licence", "")}
    if rejected is not None:
        facts["rejected"], facts["rules"] = dict(rejected), dict(rules or {})
    if overlaps:
        facts["overlaps"] = {name: dict(found) for name, found in overlaps.items()}
    return {**(base or {}), **facts}


def _language_models(realm: Realm) -> list[dict[str, Any]]:
    """The models that wrote the replies, each once; of kept replies that name none, the folder they lie in."""
    models = []
    for reply in realm.replies:
        source = re.sub(r"/[^/]*\.json$", "", reply.source)
        models.append({key: value for key, value in reply.model.items() if key != "cut"} or {"source": source})
    return list({artifacts.canonical(model): model for model in models}.values())


def overlaps_of(realm: Realm, benchmarks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What of each benchmark the realm foresaw: its number of classes, and the concepts that are one of them.

    benchmarks: {name: its class names}.
    """
    from cilkit.realms import overlap

    return {
        name: {"classes": len(class_names), "concepts": overlap(realm, list(class_names))}
        for name, class_names in benchmarks.items()
    }


def write_card(folder: str | Path, **facts: Any) -> dict[str, Any]:
    """Write `card.json` and `README.md` into `folder`; the parameters and the result are those of `card`."""
    written = card(**facts)
    artifacts.write_json(Path(folder) / CARD, written)
    artifacts.atomic_write(Path(folder) / README, markdown(written))
    return written


def markdown(facts: Mapping[str, Any]) -> str:
    """A card as Markdown; every text in it is escaped."""
    counts, realm = facts["classes"], facts.get("realm", {})
    span = dict.fromkeys([min(counts.values(), default=0), max(counts.values(), default=0)])
    about = {"images": f"{facts['images']:,}", "classes": len(counts), "images a class": " to ".join(map(str, span))}
    parts = [f"# Images of the realm {escaped(realm['name'])}" if realm else "# Images"]
    parts.append(_table(about | {"prompt style": facts["style"] or "not told"}))
    if realm:
        models = {f"language model {n}": _listed(model) for n, model in enumerate(realm["language_models"], 1)}
        about = {name: realm[name] for name in ("kind", "concepts", "origin") if name in realm}
        parts += ["## Realm", _table(about | models)]
    if "generator" in facts:
        generator = facts["generator"]
        known = {"name": generator["id"], "sha256": generator["digest"]}
        known["licence"] = generator["licence"] or "not known (ask before the images are passed on)"
        settings = {key.replace("_", " "): value for key, value in generator["settings"].items()}
        parts += ["## Generator", _table(known | settings)]
    if "rejected" in facts:
        out, rules = sum(facts["rejected"].values()), escaped(_listed(facts["rules"]) or "none")
        everything = out + facts["images"]
        share = f"{out:,} of {everything:,} images ({100 * out / max(everything, 1):.1f} %) were left out."
        parts += ["## Left out", f"{share} Rules: {rules}."]
        parts += [_table(facts["rejected"], ("reason", "images"))] if out else []
    if "overlaps" in facts:
        told = {
            name: f"{len(found['concepts'])} (it has {found['classes']} classes): {', '.join(found['concepts'])}"
            for name, found in facts["overlaps"].items()
        }
        parts += ["## Overlap with benchmarks", _table(told, ("benchmark", "concepts that are one of its classes"))]
    parts += ["## Classes", _table(dict(list(counts.items())[:SHOWN]), ("class", "images"))]
    if len(counts) > SHOWN:
        parts.append(f"and {len(counts) - SHOWN:,} more in `{CARD}`.")
    return "\n\n".join(parts) + "\n"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {_listed(value) if isinstance(value, Mapping) else value}" for name, value in facts.items()
    )


def _table(rows: Mapping[str, Any], head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    shown = {name: "none" if value in (None, "") else value for name, value in rows.items()}
    return "\n".join([*lines, *(f"| {escaped(name)} | {escaped(value)} |" for name, value in shown.items())])
