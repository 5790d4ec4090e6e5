"""Notebook 01: a realm's name becomes classes with prompts, which a person may correct and freeze."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road.inputs import opener_of, placed, upstream, with_artifact

VERSION = 2  # part of the key: raise it when the same parameters come to mean another payload
GIVEN = "classes:"  # before a benchmark's name: its class list in place of a realm
# SDDR asks with class names [read, abstract]; its words are not known, these are [remembered]. A name without a gloss
# stands alone.
CLASS_TEMPLATE = "a photo of a {name}, {description}"


def foresee(
    realm: str,
    llm: str = "replayed",
    classes: int = 0,
    kind: str = "",
    subtypes: Sequence[str] | int = (),
    per_subtype: int = 0,
    template: str = "",
    protocol: str = "auto",
    rounds: int = 1,
    llm_options: Mapping[str, Any] | None = None,
):
    """The realm that a language model foresees (Premonition, stages 1 and 1b), with `.artifact`.

    realm:    its name, e.g. "handwritten characters"; or a folder, JSON or CSV file that holds one (then only `classes`
              is read of the rest); or "classes:BENCHMARK", the benchmark's own class names with their glosses as
              descriptions, which are given and not foreseen (then `classes` and `template`).
    llm:      "replayed" (kept replies, read by the parser that live ones are), a folder of kept replies or of a saved
              realm, "local:NAME" (transformers), "endpoint:MODEL" (an OpenAI-compatible server; key in OPENAI_API_KEY).
    classes:  keep the first so many concepts; 0 keeps all. A live model is asked for more in `rounds` rounds at most.
    kind:     "object", "biological", "free" (with a `template`, e.g. "A pencil drawing of {name}"); "" by the realm.
    subtypes: their names, which saves the first question, or how many; empty: the paper's 20, or all orders.
    per_subtype: classes asked of each subtype; 0: the paper's 10 (object) or 20 (biological).
    protocol: "csv" (the paper's), "json" or "auto".
    llm_options: temperature, max_tokens, top_p, seed, revision, dtype; and, which the artifact's key does not read,
              base_url, key_from, timeout, retries, device.
    """
    from cilkit import realms
    from cilkit.realms.journal import Journal

    if realm.startswith(GIVEN):
        return _given(realm.removeprefix(GIVEN), template or CLASS_TEMPLATE, classes)
    if _is_path(realm):
        return _read(Path(placed(realm)), classes)
    options = dict(llm_options or {})
    if "@" in str(options.get("base_url", "")):
        raise UserError("base_url holds a user or password, which notebooks would show; set OPENAI_BASE_URL instead")
    subtypes = subtypes if isinstance(subtypes, int) else list(subtypes)
    identity = _identity(realm, llm, options) | {"classes": classes, "kind": kind, "subtypes": subtypes}
    identity |= {"per_subtype": per_subtype, "template": template, "protocol": protocol, "rounds": rounds}

    def make(work: artifacts.Work) -> None:
        foreseen, repairs = realms.foresee(
            realm,
            _placed(llm),
            classes or None,
            kind or None,
            subtypes,
            per_subtype or None,
            template=template,
            protocol=protocol,
            rounds=rounds,
            options=options,
            journal=Journal(work.scratch),
        )
        _save(foreseen, repairs, work)

    return open_realm(artifacts.obtain("realm", VERSION, identity, {}, make))


def correct(
    realm,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    describe: Mapping[str, str] | None = None,
    add: Sequence[Mapping[str, str]] = (),
):
    """The realm with corrections by hand, which are data: an artifact of its own, made again from the same words.

    drop: names. rename: old name -> new one. describe: old name -> description. add: {"name", "description",
    "subtype", "scientific_name"}. A name that the realm does not have is a UserError with the nearest one.
    """
    realm = upstream(realm, "realm")
    identity = {"drop": sorted(drop), "rename": dict(rename or {}), "describe": dict(describe or {})}
    identity |= {"add": [dict(one) for one in add]}

    def make(work: artifacts.Work) -> None:
        realm.corrected(**identity).save(work.path)

    return open_realm(artifacts.obtain("realm", VERSION, identity, {"realm": realm.artifact}, make))


def freeze(realm, folder: str | Path) -> Path:
    """Write the realm to a folder for keeping (realm.json, realm.csv, replies/); `foresee(folder)` reads it back."""
    realm = upstream(realm, "realm")
    folder = (artifacts.repository() or Path.cwd()) / Path(folder).expanduser()  # relative as in parameter files
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"} if folder.exists() else set()
    if "realm.json" not in held and held - {"realm.csv", "replies"}:  # these two alone: a freezing that broke off
        raise UserError(f"{folder} holds something else than a realm; choose a new folder, or one with a realm.json")
    realm.save(folder)
    return folder


def without_overlap(realm, class_names: Sequence[str]):
    """The realm without the concepts that name a class of the benchmark: the honest arm. Its own artifact."""
    from cilkit import realms

    realm = upstream(realm, "realm")
    dropped = sorted(realms.overlap(realm, list(class_names)))
    identity = {"without": dropped}

    def make(work: artifacts.Work) -> None:
        realm.without(dropped).save(work.path)

    return open_realm(artifacts.obtain("realm", VERSION, identity, {"realm": realm.artifact}, make))


@opener_of("realm")
def open_realm(artifact: artifacts.Artifact):
    from cilkit.realms import Realm

    return with_artifact(Realm.load(artifact.path), artifact)


def _identity(realm: str, llm: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Who is asked what. Kept replies and a model in a folder count by their content, other live models by name."""
    from cilkit.realms.backends import EXECUTION, backend

    identity = {"realm": realm, "options": {key: value for key, value in options.items() if key not in EXECUTION}}
    if not isinstance(llm, (str, Path)):
        return identity | {"llm": llm.id, "card": dict(getattr(llm, "card", {}))}
    if str(llm).startswith(("local:", "endpoint:")):
        in_folder = Path(_placed(llm).removeprefix("local:")).is_dir()
        return identity | {"llm": backend(_placed(llm), realm, **options).id if in_folder else str(llm)}
    return identity | {"replies": _digest_of(backend(_placed(llm), realm, **options).folder)}


def _placed(llm: Any) -> Any:
    """A folder of replies, or of a model on this machine, found from the repository too."""
    if not isinstance(llm, (str, Path)):
        return llm
    family, colon, name = str(llm).rpartition("local:")
    return f"{family}{colon}{placed(name)}"


def _read(source: Path, classes: int):
    """A realm that lies in a folder, JSON or CSV file."""
    if not source.exists():
        raise UserError(
            f"no realm lies at {str(source)!r}; correct the path, or, if a name was meant, leave out the '/'"
        )
    identity = {"realm": "file", "classes": classes, "replies": _digest_of(source)}

    def make(work: artifacts.Work) -> None:
        from cilkit import realms

        repairs = realms.Report()
        foreseen = realms.Realm.load(source, repairs)
        _save(foreseen.first(classes) if classes else foreseen, repairs, work)

    return open_realm(artifacts.obtain("realm", VERSION, identity, {}, make))


def _given(benchmark: str, template: str, classes: int):
    """The realm of a benchmark's class list. Its artifact is the same wherever the images of those classes lie."""
    from cilkit import realms
    from cilkit.data import benchmarks

    title = re.split("[:/]", benchmark)[-1]  # of folder:PATH and hf:owner/name the last part
    listed = realms.Realm.of_classes(title, benchmarks.glosses(benchmark), template)
    glosses = [[one.name, one.description] for one in listed.concepts]
    identity = {"realm": listed.origin, "classes": classes, "glosses": glosses, "template": template}

    def make(work: artifacts.Work) -> None:
        _save(listed.first(classes) if classes else listed, realms.Report(), work)

    return open_realm(artifacts.obtain("realm", VERSION, identity, {}, make))


def _save(realm, repairs, work: artifacts.Work) -> None:
    realm.save(work.path)
    artifacts.atomic_write(work.path / "repairs.csv", repairs.frame().to_csv(index=False))


def _digest_of(source: Path) -> str:
    """sha256 over a file, or over the JSON and CSV files of a realm's or replies' folder with their names."""
    unread = ("artifact.json", "measured.json", "repairs.csv")  # beside a realm that is an artifact: clocks and hosts
    found = [p for form in ("*.json", "*.csv", "replies/*.json") for p in source.glob(form) if p.name not in unread]
    listed = [[p.name, artifacts.sha256_of(p)] for p in ([source] if source.is_file() else sorted(found))]
    return hashlib.sha256(artifacts.canonical(listed).encode()).hexdigest()


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".json", ".csv"))
