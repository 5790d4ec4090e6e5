"""A sweep's YAML file: a small grid over notebooks, read into cells. A cell is a notebook and its parameters.

    notebook: notebooks/04_slca.ipynb
    params: params/04_slca/slca_cifar100.yaml   # one file or a list, later ones win
    set: {epochs: 8}                            # over the files
    axes:                                       # product; a value may have a name: {birds: params/…, none: none}
      backbone: [none, params/03_pretraining/birds.yaml]
      params: [params/04_slca/slca_cub200.yaml] # further parameter files as an axis: benchmarks
      own.slca.slow_rate: [0.1, 0.01]           # inside a dict
      backbone.epochs: [12, 24]                 # inside the parameter file that `backbone` names
    zip:                                        # lists that go together; several blocks multiply
      - {increment: [5, 10], base: [50, 0]}
    cases:                                      # explicit arms
      - {name: slow, learners: [slow_learner]}
    seeds: {order_seed: [1993, 1996, 1997]}     # or a list: [{order_seed: 1993, seed_init: 0}, …]
    overrides:                                  # where a cell's values or labels are these
      - {when: {benchmark: cub200}, set: {epochs: 50}, params: …, skip: true}
    needs: {gpus: 1, cpus: 4, timeout: 7200, memory: 32}
    decide: {value: last accuracy, by: learner, baseline: slow_learner, within: 3}
    then: [{notebook: notebooks/07_forgetting_analysis.ipynb, params: …}]   # once, after everything else
    grids: [{…}, {…}]                           # several grids with the keys above; what stands outside holds for all

All cells of the first seed come before those of the second, so that a part of a sweep is already a comparison.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cilkit import artifacts
from cilkit.errors import UserError, near_name
from cilkit.workbook import chain, parameters
from cilkit.workbook.jobs import Needs

SEEDS = ("order_seed", "seed_init", "seed_data", "seed")  # axes of these names count as seeds
GRID = {"notebook": str, "params": (str, list), "set": dict, "axes": dict, "zip": list, "cases": list}
GRID |= {"seeds": (dict, list), "overrides": list, "needs": dict}
TOP = GRID | {"decide": dict, "then": list, "grids": list}
OVERRIDE = {"when": dict, "set": dict, "params": (str, list), "skip": bool}
NEEDS = {"cpus": (int, float), "gpus": (int, float), "timeout": (int, float), "memory": (int, float)}
DECIDE = {"value": str, "by": (str, list), "baseline": str, "within": (int, float), "at_least": int, "over": list}
THEN = {"notebook": str, "params": (str, list), "set": dict, "needs": dict}


@dataclass
class Cell:
    """One point of a grid."""

    notebook: Path
    given: dict[str, Any]
    labels: dict[str, str]
    params: str | None  # the parameter files that it begins with
    seed: int = 0  # place of its seed
    needs: Needs = Needs()
    last: bool = False  # runs when all others are done


@dataclass
class SweepFile:
    """A sweep as it is written: its cells in fair order, and what decides it."""

    path: Path
    cells: list[Cell] = field(default_factory=list)
    decide: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its place below a folder `sweeps`: small/slca.yaml there is "small-slca", and no other sweep's name."""
        folders = self.path.parent.parts
        below = folders[len(folders) - folders[::-1].index("sweeps") :] if "sweeps" in folders else ()
        return "-".join((*below, self.path.stem))


@dataclass(frozen=True)
class _Choice:
    """Parameter files and values that one place of an axis stands for, with its words."""

    files: tuple[str, ...] = ()
    values: tuple[tuple[str, Any], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


def read_sweep(path: Path | str, memo: chain.Memo | None = None) -> SweepFile:
    """Read and expand a sweep; every name, type and file in it is checked before anything runs (UserError)."""
    memo, home = {} if memo is None else memo, artifacts.repository()
    path = Path(path) if Path(path).exists() or home is None else home / path
    path = path.absolute()
    try:
        content = parameters.load_params(path)
    except UserError as error:
        raise UserError(str(error).replace("parameter file", "sweep file")) from None
    _check(content, TOP, path.name)
    shared = {key: value for key, value in content.items() if key in GRID}
    grids = content.get("grids", [{}])
    cells: list[Cell] = []
    for number, grid in enumerate(grids):
        where = f"{path.name}, grid {number + 1}" if len(grids) > 1 else path.name
        _check(grid, GRID, where)
        cells += _Grid(_merged(shared, grid), where, memo).cells()
    cells.sort(key=lambda cell: cell.seed)  # stable: the grids' own order within a seed
    for entry in content.get("then", []):
        _check(entry, THEN, f"{path.name}, then")
        (cell,) = _Grid(entry, f"{path.name}, then", memo).cells()
        cell.last, cell.seed = True, 1 + max((one.seed for one in cells), default=0)
        cells.append(cell)
    decide = content.get("decide", {})
    _check(decide, DECIDE, f"{path.name}, decide")
    if decide and (missing := {"value", "by", "within"} - set(decide)):
        raise UserError(f"{path.name}, decide: it lacks {', '.join(sorted(missing))}.")
    return SweepFile(path, cells, decide)


def _check(content: Any, known: dict[str, Any], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected `name: value` lines, found {content!r}.")
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{near_name(key, known)}; known are {', '.join(known)}.")
        if not isinstance(value, known[key]) or isinstance(value, bool) != (known[key] is bool):
            raise UserError(f"{where}: {key}: {value!r} is not what this key holds.")


def _merged(shared: dict, grid: dict) -> dict:
    """A grid's keys over those that hold for all: mappings are joined, overrides come after each other."""
    merged = shared | grid
    for key in ("set", "axes", "needs"):
        if key in shared and key in grid:
            merged[key] = shared[key] | grid[key]
    if "overrides" in shared and "overrides" in grid:
        merged["overrides"] = shared["overrides"] + grid["overrides"]
    return merged


class _Grid:
    def __init__(self, content: dict, where: str, memo: chain.Memo):
        self.content, self.where, self.memo = content, where, memo
        self.home = artifacts.repository() or Path.cwd()
        if "notebook" not in content:
            raise UserError(f"{where}: it lacks `notebook: …`.")
        self.notebook = self.home / content["notebook"]
        self.known = chain.declared(self.notebook, memo)
        self.needs = _needs(content.get("needs", {}), where)

    def cells(self) -> list[Cell]:
        seeds = self._seeds()
        cells = [
            cell
            for place, seed in enumerate(seeds)
            for choices in itertools.product(*self._arms())
            if (cell := self._cell([*choices, seed], place)) is not None
        ]
        if not cells:
            raise UserError(f"{self.where}: no cell is left; its overrides skip them all.")
        return cells

    # ------------------------------------------------------------ what varies

    def _arms(self) -> Iterator[list[_Choice]]:
        """For each thing that varies, beside the seeds, its choices."""
        for name, values in self.content.get("axes", {}).items():
            if name not in SEEDS:
                yield [self._choice(name, *one) for one in self._values(name, values)]
        for block in self.content.get("zip", []):
            yield self._together(block)
        if cases := self.content.get("cases", []):
            yield [self._case(case) for case in cases]

    def _seeds(self) -> list[_Choice]:
        given = self.content.get("seeds", {})
        if isinstance(given, list):
            return [self._mapping(one, "seeds") for one in given] or [_Choice()]
        axes = {name: values for name, values in self.content.get("axes", {}).items() if name in SEEDS}
        if twice := axes.keys() & given.keys():
            raise UserError(f"{self.where}: {min(twice)} stands under both axes and seeds; keep one.")
        lists = [[self._choice(name, *one) for one in self._values(name, v)] for name, v in (axes | given).items()]
        return [_joined(choices) for choices in itertools.product(*lists)]

    def _values(self, name: str, values: Any) -> list[tuple[str, Any]]:
        """(words, value) of an axis."""
        if isinstance(values, dict):
            found = [(str(words), value) for words, value in values.items()]
        elif isinstance(values, list):
            found = [(words_of(value), value) for value in values]
        else:
            raise UserError(f"{self.where}: axis {name}: expected a list, or `name: value` lines; found {values!r}.")
        if not found:
            raise UserError(f"{self.where}: axis {name} is empty: give it a value or leave it out.")
        if doubled := {words for words, _ in found if [w for w, _ in found].count(words) > 1}:
            raise UserError(f"{self.where}: axis {name}: two values are called {min(doubled)!r}; name them apart.")
        return found

    def _together(self, block: Any) -> list[_Choice]:
        if not isinstance(block, dict) or not block:
            raise UserError(f"{self.where}: zip: expected blocks of `name: [values]`, found {block!r}.")
        lists = {name: self._values(name, values) for name, values in block.items()}
        if len({len(values) for values in lists.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
            raise UserError(f"{self.where}: zip: lists that go together must be of one length; {lengths}.")
        rows = zip(*lists.values(), strict=True)
        return [_joined([self._choice(name, *one) for name, one in zip(lists, row, strict=True)]) for row in rows]

    def _case(self, case: Any) -> _Choice:
        if not isinstance(case, dict):
            raise UserError(f"{self.where}: cases: expected mappings, found {case!r}.")
        values = {key: value for key, value in case.items() if key != "name"}
        choice = self._mapping(values, "cases")
        words = case.get("name") or ", ".join(f"{name} {words}" for name, words in choice.labels)
        return _Choice(choice.files, choice.values, (("case", str(words)),))

    def _mapping(self, values: Any, what: str) -> _Choice:
        if not isinstance(values, dict):
            raise UserError(f"{self.where}: {what}: expected mappings, found {values!r}.")
        return _joined([self._choice(name, words_of(value), value) for name, value in values.items()])

    def _choice(self, name: str, words: str, value: Any) -> _Choice:
        if name == "params":
            files = tuple(value) if isinstance(value, list) else (value,)
            return _Choice(files=files, labels=(("params", words),))
        if name.partition(".")[0] not in self.known:
            near = near_name(name, self.known)
            raise UserError(f"{self.where}: {self.notebook.name} declares no parameter {name!r}{near}.")
        return _Choice(values=((name, value),), labels=((name, words),))

    # ------------------------------------------------------------ one cell

    def _cell(self, choices: list[_Choice], seed: int) -> Cell | None:
        chosen = _joined(choices)
        labels, files = dict(chosen.labels), [*_listed(self.content.get("params")), *chosen.files]
        settings = [*self.content.get("set", {}).items(), *chosen.values]
        given = self._given(files, settings)
        for number, override in enumerate(self.content.get("overrides", []), 1):
            _check(override, OVERRIDE, f"{self.where}, override {number}")
            if not self._fits(override.get("when", {}), given, labels):
                continue
            if override.get("skip"):
                return None
            files += _listed(override.get("params"))
            settings += override.get("set", {}).items()
            given = self._given(files, settings)
        return Cell(self.notebook, given, labels, ", ".join(files) or None, seed, self.needs)

    def _given(self, files: list[str], settings: list[tuple[str, Any]]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name in files:
            given |= chain.loaded(self.home / name, self.memo)
        given = copy.deepcopy(given)
        for name, value in settings:
            self._set(given, name, value)
        try:
            fitted, _ = parameters.check(self.known, given)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        return {name: value for name, value in fitted.items() if value != self.known[name].default}

    def _set(self, given: dict[str, Any], name: str, value: Any) -> None:
        """Set a parameter, an entry of a dict (`own.slca.lr`), or a parameter of the file that one names."""
        first, *rest = name.split(".")
        if first not in self.known:
            near = near_name(first, self.known)
            raise UserError(f"{self.where}: {self.notebook.name} declares no parameter {first!r}{near}.")
        if not rest:
            given[first] = copy.deepcopy(value)
            return
        before = given.get(first, self.known[first].default)
        if isinstance(before, dict):
            inner = given[first] = copy.deepcopy(before)
            for step in rest[:-1]:
                inner = inner.setdefault(step, {})
                if not isinstance(inner, dict):
                    raise UserError(f"{self.where}: {name}: {step!r} is {inner!r}, no mapping to set something in.")
            inner[rest[-1]] = copy.deepcopy(value)
        elif isinstance(before, str) and chain.notebook_of(self.home / before) and (self.home / before).is_file():
            given[first] = derived(self.home / before, ".".join(rest), value, self.memo)
        else:
            raise UserError(f"{self.where}: {name}: {first} is {before!r}, neither a mapping nor a parameter file.")

    def _fits(self, when: dict, given: dict[str, Any], labels: dict[str, str]) -> bool:
        for name, wanted in when.items():
            if name not in labels and name not in self.known:
                near = near_name(name, {*labels, *self.known})
                raise UserError(f"{self.where}: when: {name!r} is neither a parameter nor an axis{near}.")
            value = given.get(name, self.known[name].default) if name in self.known else None
            options = wanted if isinstance(wanted, list) else [wanted]
            if value not in options and labels.get(name) not in map(str, options):
                return False
        return True


def derived(path: Path, name: str, value: Any, memo: chain.Memo) -> str:
    """A parameter file with one value changed, as `reports/sweeps/params/<notebook>/<stem>-<digest>.yaml`: its path
    from the repository. The same change gives the same file, which is written once."""
    home, notebook = artifacts.repository() or Path.cwd(), chain.notebook_of(path)
    inner = _Grid({"notebook": notebook.relative_to(home).as_posix()}, path.name, memo)
    content = copy.deepcopy(chain.loaded(path, memo))
    inner._set(content, name, value)
    parameters.check(inner.known, content)
    digest = chain.key_of(notebook, chain.resolved(notebook, content, memo), memo)[:8]
    stem = path.stem.partition("--")[0]
    target = home / "reports" / "sweeps" / "params" / notebook.stem / f"{stem}--{digest}.yaml"
    if not target.is_file():
        hours = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Derived: ")]
        head = [f"# {path.relative_to(home).as_posix()} with {name} changed, for a sweep.", *hours]
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        artifacts.atomic_write(target, "\n".join([*head, text]))
    return target.relative_to(home).as_posix()


def words_of(value: Any) -> str:
    """A value in a few words, for a label."""
    if isinstance(value, str):
        return Path(value).stem if value.endswith((".yaml", ".yml")) else value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " + ".join(words_of(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _joined(choices: Any) -> _Choice:
    fields = zip(*((c.files, c.values, c.labels) for c in choices), strict=True)
    return _Choice(*(tuple(itertools.chain.from_iterable(parts)) for parts in fields)) if choices else _Choice()


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _needs(content: dict, where: str) -> Needs:
    _check(content, NEEDS, f"{where}, needs")
    if bad := [name for name, number in content.items() if number < 0]:
        raise UserError(f"{where}, needs: {bad[0]} is {content[bad[0]]}; expected 0 or more.")
    return Needs(**content)
