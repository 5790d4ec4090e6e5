"""The plan of a painted image set: every image's class, prompt, seed and batch, fixed before the first is painted.

A plan is a table, in memory (`make_plan`) or on the disk (`write_plan`), where a shard is a row group: planning, and
looking a shard up, take the same memory whatever the number of images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit.artifacts import canonical, whole_file
from cilkit.errors import UserError
from cilkit.realms.realm import Realm
from cilkit.synthesis.generators import Generator
from cilkit.synthesis.styles import Style, joined, style_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

COLUMNS = ("image_id", "class_id", "class_name", "prompt", "seed", "batch_id", "position")
SHORTENED = "shortened"  # further column where prompts may be shortened: what was dropped, "" for nothing
SHARD_SIZE = 1000  # images a shard at most
SHARDS = 16  # shards of a small plan, about: enough for several workers
BATCH = 32  # images a batch where no generator says
LONG_PROMPTS = ("refuse", "shorten")
LIMIT = 300  # characters to which Premonition's notebook shortens a prompt (read in source); where tokens are not known


def image_seed(seed: int, class_name: str, index: int) -> int:
    """The seed of image `index` of a class, 63 bits: the same in every plan of this seed, whatever else is in it."""
    text = canonical(["image seed", int(seed), class_name, int(index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_plan(
    realm: Realm,
    per_class: int | Mapping[str, int],
    seed: int,
    batch_size: int | None = None,
    generator: Generator | None = None,
    style: str | Sequence[str] | Style = "paper",
    long_prompts: str = "refuse",
) -> pd.DataFrame:
    """One row an image (columns COLUMNS), class by class; `batch_size` rows after one another are painted together.

    per_class: images of every class, or of each by name. A batch may hold the end of one class and the beginning of the
    next, so all but the last are full. generator: checked for every class and its prompt with the style's longest
    ending; its batch size is the default. style: a name of `styles.STYLES`, or a list of endings. long_prompts: what
    happens to a prompt of more tokens than the generator reads: "refuse" (UserError), or "shorten": the concept's last
    clauses are dropped until it fits, as Premonition's notebook does at 300 characters, the ending stays, and the
    further column `shortened` holds what was dropped.
    """
    import pandas as pd

    draft = _Draft(realm, per_class, seed, batch_size, generator, style, long_prompts)
    return pd.DataFrame(list(draft.rows()), columns=draft.columns)


def write_plan(
    path: str | Path,
    realm: Realm,
    per_class: int | Mapping[str, int],
    seed: int,
    batch_size: int | None = None,
    generator: Generator | None = None,
    style: str | Sequence[str] | Style = "paper",
    shard_size: int = 0,
    long_prompts: str = "refuse",
) -> Plan:
    """The rows of `make_plan`, written shard by shard as they are made. shard_size: see `batches_per_shard`."""
    import pandas as pd
    import pyarrow as pa

    draft = _Draft(realm, per_class, seed, batch_size, generator, style, long_prompts)
    per_shard, batch = batches_per_shard(len(draft), draft.batch_size, shard_size), draft.columns.index("batch_id")
    parts = groupby(draft.rows(), key=lambda row: row[batch] // per_shard)
    frames = (pd.DataFrame(list(rows), columns=draft.columns) for _, rows in parts)
    whole = ("class_id", "seed", "batch_id", "position")
    schema = pa.schema([(name, pa.int64() if name in whole else pa.large_string()) for name in draft.columns])
    _write(Path(path), schema, frames, {"classes": realm.concept_names, "batch_size": draft.batch_size})
    return open_plan(path)


def save_plan(path: str | Path, plan: pd.DataFrame, shard_size: int = 0) -> Plan:
    """Put a plan in memory on the disk; further columns are kept. UserError as of `demand_rows`."""
    import pyarrow as pa

    demand_rows(plan)
    batch_size = int(plan.groupby("batch_id").size().max())
    shard = plan["batch_id"] // batches_per_shard(len(plan), batch_size, shard_size)
    frames = (rows for _, rows in plan.groupby(shard))
    names = plan.drop_duplicates("class_id").sort_values("class_id")["class_name"].tolist()
    schema = pa.Schema.from_pandas(plan, preserve_index=False).remove_metadata()
    _write(Path(path), schema, frames, {"classes": names, "batch_size": batch_size})
    return open_plan(path)


def demand_rows(plan: pd.DataFrame) -> None:
    """UserError for a plan in memory that lacks a column, or has no rows."""
    missing = [column for column in COLUMNS if column not in plan.columns]
    if missing or not len(plan):
        lack = f"lacks the column {missing[0]!r}" if missing else "has no rows"
        raise UserError(f"the plan {lack}; expected {', '.join(COLUMNS)}, as of make_plan")


def open_plan(path: str | Path) -> Plan:
    """A plan on the disk. UserError where there is none or the file is damaged."""
    return Plan(path)


class Plan:
    """A plan on the disk: Parquet, a row group a shard, every shard a number of whole batches.

    batch_size: images of a full batch. classes: the class names by class_id. hash: equal to `plan_hash` of the rows.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        about = json.loads((self._file.metadata.metadata or {}).get(b"plan", b"{}"))
        if missing := [name for name in ("hash", "batch_size", "classes") if name not in about]:
            raise UserError(f"{self.path} is no plan (its {missing[0]} is missing); write one with write_plan")
        self.hash, self.batch_size, self.classes = about["hash"], about["batch_size"], about["classes"]

    @cached_property
    def _file(self):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.path)
        except (OSError, ArrowException) as error:
            why = "does not exist" if isinstance(error, FileNotFoundError) else "is not readable Parquet"
            raise UserError(f"the plan {self.path} {why}; write it with write_plan") from None

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    @property
    def n_shards(self) -> int:
        return self._file.metadata.num_row_groups

    @cached_property
    def shard_rows(self) -> list[int]:
        """Images of every shard."""
        return [self._file.metadata.row_group(shard).num_rows for shard in range(self.n_shards)]

    def rows(self, shard: int) -> pd.DataFrame:
        """The rows of one shard: COLUMNS, and what else the plan holds."""
        if not 0 <= shard < self.n_shards:
            raise UserError(f"shard {shard} is outside the {self.n_shards} shards of {self.path}; count from 0")
        return self._file.read_row_group(shard).to_pandas()

    def shortened(self) -> pd.DataFrame:
        """The classes whose prompts were shortened: class_name, prompt (of its first image), shortened (what went)."""
        import pandas as pd

        found = pd.DataFrame(columns=["class_name", "prompt", SHORTENED])
        for shard in range(self.n_shards) if SHORTENED in self._file.schema_arrow.names else ():
            rows = self._file.read_row_group(shard, list(found.columns)).to_pandas()
            found = pd.concat([found, rows[rows[SHORTENED] != ""]]).drop_duplicates("class_name", ignore_index=True)
        return found


def batches_per_shard(images: int, batch_size: int, shard_size: int = 0) -> int:
    """Whole batches a shard, at least one: `shard_size` images at most.

    0: from the number of images alone, about SHARDS shards of a small plan, SHARD_SIZE images a shard of a large one.
    """
    return max(1, (shard_size or min(SHARD_SIZE, -(-images // SHARDS))) // batch_size)


def plan_hash(plan: pd.DataFrame) -> str:
    """sha256 of the plan's rows: two plans with the same hash ask for the same images in the same batches."""
    return _hashed([plan]).hexdigest()


def _hashed(frames: Iterable[pd.DataFrame]):
    """The hash of all rows as one JSON list, taken piece by piece."""
    hashed, between = hashlib.sha256(b"["), b""
    for frame in frames:
        if len(frame):
            hashed.update(between + canonical(frame[list(COLUMNS)].to_numpy().tolist())[1:-1].encode())
            between = b", "
    hashed.update(b"]")
    return hashed


def _write(path: Path, schema: pa.Schema, frames: Iterable[pd.DataFrame], about: dict) -> None:
    """Write frames as row groups, the file whole or not at all; `about` and the rows' hash go into its footer."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with whole_file(path) as file, ParquetWriter(file, schema, write_statistics=False) as writer:

        def written() -> Iterator[pd.DataFrame]:
            for frame in frames:
                writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), row_group_size=len(frame))
                yield frame

        about = {**about, "hash": _hashed(written()).hexdigest()}
        writer.add_key_value_metadata({"plan": canonical(about)})


class _Draft:
    """What a plan is made of, checked; `rows` makes it row by row."""

    def __init__(self, realm, per_class, seed, batch_size, generator, style, long_prompts):
        if long_prompts not in LONG_PROMPTS:
            raise UserError(f"long_prompts {long_prompts!r} is unknown; take {' or '.join(map(repr, LONG_PROMPTS))}")
        if not len(realm):
            raise UserError(
                f"realm {realm.name!r} has no concepts, so there is nothing to paint; leave fewer of them out"
            )
        self.realm, self.seed, self.style = realm, seed, style_of(style)
        self.batch_size = batch_size or (generator.settings["batch_size"] if generator is not None else BATCH)
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size} is not a number of images; give 1 or more")
        self.wanted = [_wanted(realm, name, per_class) for name in realm.concept_names]
        self.columns = [*COLUMNS, SHORTENED] if long_prompts == "shorten" else list(COLUMNS)
        self.beginnings = [self.style.beginning(concept) for concept in realm.concepts]
        self.dropped = [""] * len(realm)
        measure, limit = _measure(generator)
        longest = self.style.longest(measure)
        if long_prompts == "shorten":
            fitted = [_shortened(text, longest, measure, limit) for text in self.beginnings]
            self.beginnings, self.dropped = [kept for kept, _ in fitted], [dropped for _, dropped in fitted]
        if generator is not None:
            generator.check(realm.concept_names, [joined(text, longest) for text in self.beginnings])

    def __len__(self) -> int:
        return sum(self.wanted)

    def rows(self) -> Iterator[tuple]:
        folders, number = self.realm.folders, 0
        for class_id, (name, wanted) in enumerate(zip(self.realm.concept_names, self.wanted, strict=True)):
            beginning, dropped = self.beginnings[class_id], self.dropped[class_id]
            endings = self.style.endings(self.seed, name)
            for index in range(wanted):
                image, prompt = image_seed(self.seed, name, index), joined(beginning, next(endings))
                row = (f"{folders[name]}-{index:05d}", class_id, name, prompt, image, *divmod(number, self.batch_size))
                yield (*row, dropped) if SHORTENED in self.columns else row
                number += 1


def _wanted(realm: Realm, name: str, per_class: int | Mapping[str, int]) -> int:
    wanted = per_class.get(name, 0) if isinstance(per_class, Mapping) else per_class
    if not isinstance(wanted, int) or wanted < 1:
        raise UserError(
            f"class {name!r} of realm {realm.name!r} would have no images ({wanted!r} asked for); ask for 1 or more, "
            "or leave the class out with realm.without"
        )
    return wanted


def _measure(generator: Generator | None):
    """(texts -> lengths, the largest length): in the generator's tokens where it counts them, else in characters."""
    limit = generator.tokens([""])[1] if hasattr(generator, "tokens") else 0
    if limit:
        return (lambda texts: generator.tokens(list(texts))[0]), limit
    return (lambda texts: [len(text) for text in texts]), LIMIT


def _shortened(beginning: str, ending: str, measure, limit: int) -> tuple[str, str]:
    """(what is kept, what is dropped): clauses, ended by ", " or ": ", go from the back until the prompt fits."""
    pieces = re.split("(, |: )", beginning)  # clause, separator, clause …
    while len(pieces) > 1 and measure([joined("".join(pieces), ending)])[0] > limit:
        del pieces[-2:]
    kept = "".join(pieces)
    return kept, beginning[len(kept) + 2 :]
