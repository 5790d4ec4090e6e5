"""What people decided about images: a file of JSON lines that is only appended to, by any number of them at once."""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cilkit.errors import UserError

ACCEPT, REJECT, WITHDRAWN = "accept", "reject", "withdrawn"
COUNTED = ("image_id", "decision", "by", "why")  # the part of a line that says what is decided


class Decisions:
    """What people decided, one JSON object a line: {image_id, decision: accept|reject|withdrawn, by, why, when}.

    Lines are only ever appended; of several about one image the last one counts, and a withdrawn decision is none.
    `notes` says which lines were not read: a line that a crash left half written. `changed` gathers the images that
    lines read so far were about; who follows the file empties it. UserError, naming the line, for anything else that
    is no decision.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.changed = Path(path), set()
        self._last: dict[str, dict[str, Any]] = {}
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self.changed |= set(self._last)
        self._last.clear()
        self._notes: dict[int, str] = {}  # line -> what is wrong with it
        self._read, self._lines, self._file = 0, 0, None  # bytes and whole lines read so far, of which file

    @property
    def notes(self) -> list[str]:
        return list(self._notes.values())

    def refresh(self) -> bool:
        """Read what was appended since, by whomever; whether there was anything. A file that was replaced is read anew.

        A last line without its end may still be being written: unless it is whole, it is read again next time.
        """
        if not self.path.exists():
            return False
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            if self._file not in (None, found.st_ino) or found.st_size < self._read:
                self._forget()
            self._file = found.st_ino
            file.seek(self._read)
            data = file.read()
        if not data:
            return False
        *whole, rest = data.split(b"\n")
        for number, line in enumerate(whole, self._lines + 1):
            self._take(line, number)
        if self._take(rest, self._lines + len(whole) + 1):
            self._read += len(rest)
        self._read, self._lines = self._read + len(data) - len(rest), self._lines + len(whole)
        return True

    def _take(self, line: bytes, number: int) -> bool:
        """Count one line of the file; whether it could be read."""
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").strip()
        try:
            row = json.loads(text or "null")
        except ValueError:
            row = text
        if isinstance(row, str) and not row.endswith("}"):
            self._notes[number] = f"{self.path.name}, line {number} is half written and was not read"
            return False
        self._notes.pop(number, None)
        if row is not None:
            self._keep(row, f"{self.path}, line {number}")
        return True

    def _keep(self, row: Any, where: str) -> None:
        check_decision(row, where)
        self.changed.add(row["image_id"])
        if row["decision"] == WITHDRAWN:
            self._last.pop(row["image_id"], None)
        else:
            self._last[row["image_id"]] = row

    def add(self, image_id: str, decision: str, by: str = "", why: str = "", rubric: str = "") -> None:
        """Append one decision; it is on the disk when this returns."""
        self.add_many([image_id], decision, by, why, rubric)

    def add_many(self, image_ids: Iterable[str], decision: str, by: str = "", why: str = "", rubric: str = "") -> None:
        """Append the same decision about many images as one piece; all of it is on the disk when this returns.

        by, why: who decided, and the reason. rubric: by which version of which instructions, if there are any.
        """
        more = {"rubric": rubric} if rubric else {}
        self.append({"image_id": str(i), "decision": decision, "by": by, "why": why, **more} for i in image_ids)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Append decisions, dated now, as one piece that is on the disk when this returns.

        Nothing is written where one of them is no decision. Others may append at the same time: lines never mix.
        Returns the lines as they were written.
        """
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [{**row, "when": when} for row in rows]
        for row in rows:
            check_decision(row, "a new decision")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if new := not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = b"\n" + text  # behind a line that a crash left half written
            while text:
                text = text[file.write(text) :]
            os.fsync(file.fileno())
        if new:
            _fsync(self.path.parent)
        self.refresh()
        return rows

    def __len__(self) -> int:
        return len(self._last)

    def get(self, image_id: str) -> dict[str, Any] | None:
        """The whole line that counts for an image, with its date; None where nothing is decided."""
        return self._last.get(image_id)

    def rows(self) -> list[dict[str, str]]:
        """The decision that counts for each image, sorted by image, without its date."""
        found = (self._last[image_id] for image_id in sorted(self._last))
        return [{key: str(row.get(key, "")) for key in COUNTED} for row in found]


def check_decision(row: Any, where: str) -> None:
    """UserError naming `where` for what is no decision."""
    if not isinstance(row, dict) or not isinstance(row.get("image_id"), str):
        raise UserError(f"{where}: {str(row)[:60]!r} is no decision; correct or delete the line")
    if row.get("decision") not in (ACCEPT, REJECT, WITHDRAWN):
        raise UserError(
            f"{where}: decision {row.get('decision')!r} of {row['image_id']!r} is not accept or reject (or withdrawn)"
        )


def _fsync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
