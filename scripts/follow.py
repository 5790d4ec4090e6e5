"""Follow a page as a stranger would: do exactly what it says, in a copy of the checkout, and stop where it is wrong.

    python scripts/follow.py ADDING.md FOLDER            FOLDER: a new or empty one, which keeps what was made

The page says what to do in its fenced blocks, by a word behind the language:

    python file=PATH      write this file; none of that name may be there yet
    yaml append=PATH      add these lines at the end of that file
    sh run                run these commands from the copy's root; every one must succeed
    text expect           lines that the last commands show, in this order; … stands for anything

Whatever else is fenced (`sh`, `python` alone) is for reading. The commands run in the environment of this interpreter,
with the copy's package before the installed one. Artifacts are made in the copy, or found under $CILKIT_ARTIFACTS.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

KINDS = ("file", "append", "run", "expect")
OWN = ("CILKIT_DATA", "CILKIT_REPORT_DIR", "CILKIT_RUN")  # variables that would lead out of the copy
MOST = 900  # seconds that one block of commands may take


class Differs(Exception):
    """The page says something that is not so. The sentence begins with the page's line."""


@dataclass(frozen=True)
class Block:
    """line: of the opening fence, from 1. part: the "## " heading above. kind: "" for what is there for reading."""

    line: int
    part: str
    language: str
    kind: str
    target: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page. Differs for a word that means nothing here, and for a fence that is left open."""
    found, opened, part, lines = [], None, "", []
    for number, line in enumerate(page.splitlines(), 1):
        if opened is None and line.startswith("## "):
            part = line.removeprefix("## ")
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (number, *_words_of(line, number)), []
        else:
            found.append(Block(opened[0], part, *opened[1:], "".join(f"{one}\n" for one in lines)))
            opened = None
    if opened:
        raise Differs(f"line {opened[0]}: this block is never closed")
    return found


def _words_of(fence: str, line: int) -> tuple[str, str, str]:
    """(language, kind, target) of an opening fence."""
    language, _, word = fence.removeprefix("```").strip().partition(" ")
    kind, _, target = word.partition("=")
    if kind and (kind not in KINDS or bool(target) != (kind in ("file", "append"))):
        raise Differs(f"line {line}: {word!r} is none of file=PATH, append=PATH, run, expect")
    return language, kind, target


def copied(home: Path, folder: Path) -> Path:
    """The files that git knows of, as they are now, in a folder that held nothing."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something already; name a new folder")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=home, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (home / name).is_file():  # not where it was deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(home / name, folder / name)
    return folder


def walk(page: list[Block], folder: Path, say=print) -> dict[str, float]:
    """Do what the blocks say, in `folder`: part -> seconds. Differs with the line of the first that is not so."""
    seconds: dict[str, float] = {}
    shown = ""
    for block in page:
        begun = time.monotonic()
        if block.kind in ("file", "append"):
            write(block, folder)
        elif block.kind == "run":
            say(f"line {block.line}: {block.text.strip()}")
            shown = ran(block, folder)
        elif block.kind == "expect":
            compare(block, shown)
        seconds[block.part] = seconds.get(block.part, 0.0) + time.monotonic() - begun
        if block.kind == "run":
            say(f"    {time.monotonic() - begun:.1f} s")
    return seconds


def write(block: Block, folder: Path) -> None:
    path = folder / block.target
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Differs(f"line {block.line}: {block.target} lies outside the checkout")
    if path.exists() != (block.kind == "append"):
        raise Differs(f"line {block.line}: {block.target} is {'there already' if path.exists() else 'not there'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + block.text)


def ran(block: Block, folder: Path) -> str:
    """What the commands show. Differs with the end of it where one of them fails or takes longer than MOST."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN}
    kept |= {"PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}
    kept |= {"COLUMNS": "200"}  # else a table is broken where the terminal ends
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        done = subprocess.run(command, cwd=folder, env=kept, timeout=MOST, **merged)
    except subprocess.TimeoutExpired:
        raise Differs(f"line {block.line}: not over after {MOST} s") from None
    if done.returncode:
        raise Differs(f"line {block.line}: exit status {done.returncode}; it ended in\n{done.stdout[-2000:]}")
    return done.stdout


def compare(block: Block, shown: str) -> None:
    """Each expected line among the shown ones, in order; blanks count as one."""
    rest = iter([" ".join(line.split()) for line in shown.splitlines()])
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        wanted = ".*".join(re.escape(piece) for piece in " ".join(line.split()).split("…"))
        if not any(re.fullmatch(wanted, one) for one in rest):
            raise Differs(f"line {number}: {line!r} is not among what was shown:\n{shown[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Do what a page says, in a copy of the checkout.")
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    home = Path(__file__).resolve().parent.parent
    try:
        seconds = walk(blocks(given.page.read_text()), copied(home, given.folder.absolute()))
    except Differs as wrong:
        print(f"{given.page.name}, {wrong}", file=sys.stderr)
        return 1
    for part, spent in seconds.items():
        print(f"{spent / 60:5.1f} min  {part or 'before the first part'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
