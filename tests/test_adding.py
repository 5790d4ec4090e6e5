"""The page ADDING.md: what it shows is so, in parts at once, and as a whole by following it."""

import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cilkit import learners

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "ADDING.md").read_text()
LEARNER, PINNED = "cilkit/learners/averaged.py", "tests/test_learners_averaged.py"


def loaded(path: Path, name: str):
    """A Python file as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


follow = loaded(ROOT / "scripts" / "follow.py", "follow")
BLOCKS = follow.blocks(PAGE)
FILES = {block.target: block for block in BLOCKS if block.kind in ("file", "append")}


def test_each_part_writes_runs_and_says_what_one_sees():
    kinds = {}
    for before, block in zip([None, *BLOCKS], BLOCKS, strict=False):
        kinds.setdefault(block.part, []).append(block.kind)
        assert block.kind != "expect" or before.kind == "run", f"line {block.line}: what should show this?"
        assert block.kind != "run" or block.language == "sh"
    assert list(kinds) == ["A method", "A benchmark", "A generator"]
    for part, found in kinds.items():
        assert {"file", "run", "expect"} <= set(found) and found[-1] == "expect", part


def test_what_is_to_be_written_is_not_there_and_what_is_added_to_is():
    for target, block in FILES.items():
        assert (ROOT / target).exists() == (block.kind == "append"), target
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGE):
        assert (ROOT / target).exists(), target


def test_its_files_are_in_the_house_s_style(tmp_path):
    paths = [tmp_path / target for target in FILES if target.endswith(".py")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[path.relative_to(tmp_path).as_posix()].text)
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [Path(sys.executable).parent / "ruff", *command, "--config", ROOT / "pyproject.toml", *paths],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_what_is_added_is_what_the_code_reads(tmp_path, monkeypatch):
    """Its entries stand in the files that they are added to, under names that are free."""
    from cilkit.data import catalogue
    from cilkit.synthesis import presets

    (name, entry), *more = yaml.safe_load(FILES["cilkit/assets/benchmarks/catalogue.yaml"].text).items()
    assert not more and name not in catalogue.entries() and catalogue.Entry(name, **entry).images == [240, 120]
    added = FILES["cilkit/assets/generators.yaml"].text
    assert not set(yaml.safe_load(added)) & set(presets.presets())
    monkeypatch.setattr(presets, "FILE", tmp_path / "generators.yaml")
    presets.FILE.write_text(added)
    assert presets.presets.__wrapped__()["hurried"].settings["steps"] == 4


def test_its_method_is_what_its_test_says(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(learners, "NAMES", (*learners.NAMES, "averaged"))
    for target, name in ((LEARNER, "cilkit.learners.averaged"), (PINNED, "pinned")):
        (tmp_path / Path(target).name).write_text(FILES[target].text)
        module = loaded(tmp_path / Path(target).name, name)
        monkeypatch.setitem(sys.modules, name, module)
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 4
    for test in tests:
        test(stream) if "stream" in inspect.signature(test).parameters else test()
    own = yaml.safe_load(FILES["params/04_slca/averaged.yaml"].text)["own"]["averaged"]
    assert own.keys() <= {field.name for field in dataclasses.fields(learners.find("averaged").Hyper)}


def test_the_seams_that_it_lists_are_overridden_where_it_says():
    rows = re.findall(r"^\| (`[a-z_]+\([^|]*) \|[^|]*\| \[\w+\.py\]\(([^)]+)\) \|$", PAGE, re.M)
    assert len(rows) == 8
    for seams, file in rows:
        for seam in re.findall(r"(\w+)\(", seams):
            assert hasattr(learners.Learner, seam) and f"def {seam}(self" in (ROOT / file).read_text(), (seam, file)


# ---------------------------------------------------------------- the script that follows it

MADE = """## One

```sh file=notes/a.txt
first
```

```sh append=notes/a.txt
second
```

```sh run
cat notes/a.txt; echo "at $((20 + 1)) s"
```

```text expect
first
at … s
```

## Two

```python
for reading
```

```sh run
true
```
"""


def test_a_page_is_followed_and_its_parts_are_timed(tmp_path):
    said = []
    seconds = follow.walk(follow.blocks(MADE), tmp_path, said.append)
    assert list(seconds) == ["One", "Two"] and (tmp_path / "notes" / "a.txt").read_text() == "first\nsecond\n"
    assert said[0].startswith("line 11: cat")


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("at … s", "at … ms", "line 17: 'at … ms' is not among"),
        ("\nfirst\nat …", "\nsecond\nfirst\nat …", "line 17: 'first' is not among"),
        ("true", "echo so; false", r"line 26: exit status 1; it ended in\s*so"),
        ("append=notes/a", "append=notes/b", "line 7: notes/b.txt is not there"),
        ("append=", "file=", "line 7: notes/a.txt is there already"),
        ("file=notes", "file=../notes", "line 3: ../notes/a.txt lies outside"),
        ("sh run", "sh rum", "line 11: 'rum' is none of"),
        ("true\n```", "true", "line 26: this block is never closed"),
    ],
)
def test_the_first_line_that_is_not_so_is_named(tmp_path, was, now, message):
    page = MADE.replace(was, now)
    assert page != MADE
    with pytest.raises(follow.Differs, match=message):
        follow.walk(follow.blocks(page), tmp_path / "copy", lambda _: None)


def test_the_copy_holds_what_git_knows_as_it_is_now(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("kept.txt", "unknown.txt", "gone.txt"):
        (home / name).write_text("as committed")
    for command in (["init", "-q"], ["add", "kept.txt", "gone.txt"]):
        subprocess.run(["git", *command], cwd=home, check=True)
    (home / "kept.txt").write_text("as it is now")
    (home / "gone.txt").unlink()
    follow.copied(home, tmp_path / "copy")
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {"kept.txt": "as it is now"}
    with pytest.raises(SystemExit, match="holds something already"):
        follow.copied(home, tmp_path / "copy")


@pytest.mark.slow
def test_the_whole_page_is_so_and_each_part_takes_less_than_fifteen_minutes(tmp_path, monkeypatch):
    """As a stranger who has no artifacts yet: the default paintings and backbone are made on the way."""
    monkeypatch.delenv("CILKIT_ARTIFACTS", raising=False)
    seconds = follow.walk(BLOCKS, follow.copied(ROOT, tmp_path / "copy"))
    assert max(seconds.values()) < 15 * 60, seconds
