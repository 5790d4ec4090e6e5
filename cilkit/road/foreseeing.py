"""Notebook 01: a realm's name becomes classes with prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cilkit import artifacts
from cilkit.road.inputs import opener_of, upstream, verb_of, with_artifact

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload


@verb_of("01_realm_prompting")
def foresee(realm: str, llm: str = "replayed", classes: int = 0):
    """The realm that a language model foresees (Premonition, stages 1 and 1b), with `.artifact`.

    realm:   its name, e.g. "handwritten characters"; or a folder, JSON or CSV file that holds one.
    llm:     "replayed": replies kept in the repository go through the parser that live replies go through.
    classes: keep the first so many concepts; 0 keeps all.
    """
    from cilkit import realms
    from cilkit.realms.backends import backend

    source = Path(realm) if _is_path(realm) else backend(llm, realm).folder
    identity = {"realm": "file" if _is_path(realm) else realm, "classes": classes, "replies": _digest_of(source)}

    def make(work: artifacts.Work) -> None:
        if _is_path(realm):
            repairs = realms.Report()
            foreseen = realms.Realm.load(source, repairs)
            foreseen = foreseen.first(classes) if classes else foreseen
        else:
            foreseen, repairs = realms.foresee(realm, llm=llm, classes=classes or None)
        foreseen.save(work.path)
        artifacts.atomic_write(work.path / "repairs.csv", repairs.frame().to_csv(index=False))

    return open_realm(artifacts.obtain("realm", VERSION, identity, {}, make))


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


def _digest_of(source: Path) -> str:
    """sha256 over a file, or over the JSON and CSV files of a folder with their names."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix in (".json", ".csv"))
    listed = [[p.name, artifacts.sha256_of(p)] for p in files]
    return hashlib.sha256(artifacts.canonical(listed).encode()).hexdigest()


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".json", ".csv"))
