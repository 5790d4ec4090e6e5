"""Parameters: what a cell declares, what fits, and one clear sentence for what does not."""

import math

import numpy as np
import pytest

from cilkit.errors import UserError
from cilkit.workbook import parameters
from cilkit.workbook.parameters import check, declared_in

CELL = """# parameters
from typing import Literal

epochs: int = 3  # passes over the images
lr: float = 0.01  # at batch size 128
arm: Literal["none", "foreseen"] = "none"  # which paintings
backbone: str | None = None
note: str = "a=b # not a comment"
increments: list[int] = [2, 2]
fast: bool = True
weights: dict[str, float] = dict()
""".replace("dict()", "{}")


@pytest.fixture
def known():
    return declared_in(CELL)


def test_declares_names_types_defaults_and_comments_in_order(known):
    assert list(known) == ["epochs", "lr", "arm", "backbone", "note", "increments", "fast", "weights"]
    assert known["lr"] == parameters.Parameter("lr", "float", 0.01, "at batch size 128")
    assert known["arm"].type == "Literal['none', 'foreseen']"
    assert known["note"].default == "a=b # not a comment" and known["note"].comment == ""
    assert declared_in("# parameters\nsteps = -3\n")["steps"].type == "int"
    assert declared_in("# parameters\na: str = (\n    'x'  # which\n)\n")["a"].comment == "which"


@pytest.mark.parametrize("line", ["x = open('f')", "x, y = 1, 2", "print(1)", "x: int", "d['a'] = 1"])
def test_a_line_that_is_no_plain_assignment_is_refused(line):
    with pytest.raises(UserError, match="parameters cell"):
        declared_in("# parameters\n" + line)


@pytest.mark.parametrize(
    ("name", "given", "expected", "noted"),
    [
        ("lr", "1e-4", 1e-4, True),  # what YAML 1.1 makes of `lr: 1e-4`
        ("lr", 1, 1.0, False),
        ("epochs", "1e3", 1000, True),
        ("epochs", "12345678901234567891", 12345678901234567891, True),
        ("epochs", 4.0, 4, True),
        ("increments", "[1, 2]", [1, 2], True),  # what papermill's -p makes of it
        ("increments", ["1", 2], [1, 2], True),
        ("increments", (4, 6), [4, 6], False),
        ("fast", "false", False, True),
        ("backbone", None, None, False),
        ("backbone", "None", None, True),  # Python's word, a text in YAML
        ("backbone", "none", "none", False),
        ("note", 1993, "1993", True),
        ("weights", {"a": 1}, {"a": 1.0}, False),
        ("arm", "foreseen", "foreseen", False),
        ("lr", np.float32(0.5), 0.5, False),
    ],
)
def test_values_are_read_by_their_declared_type(known, name, given, expected, noted):
    values, notes = check(known, {name: given})
    assert values[name] == expected and type(values[name]) is type(expected)
    assert len(notes) == noted
    assert all(name in note and repr(expected) in note for note in notes)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("epochs", 2.5, "expected int"),
        ("epochs", True, "expected int"),
        ("epochs", None, "expected int"),
        ("lr", "fast", "expected float"),
        ("lr", math.nan, "not a number"),
        ("arm", "forseen", "did you mean 'foreseen'"),
        ("note", True, "in quotes"),  # `note: on`
        ("fast", 1, "true or false"),
        ("increments", "two", "expected list"),
        ("increments", [1, "x"], "expected list"),
        ("epcohs", 3, "did you mean 'epochs'"),
        ("qqq", 3, "Known: epochs, lr"),
        ("a; import os; os._exit(3) #", 1, "not a Python identifier"),
        ("lambda", 1, "not a Python identifier"),
        (True, 1, "not a Python identifier"),  # `on: 1`
    ],
)
def test_what_does_not_fit_is_one_sentence(known, name, given, says):
    with pytest.raises(UserError, match=".*") as caught:
        check(known, {name: given})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_union_keeps_a_value_that_one_of_its_types_holds():
    known = declared_in("# parameters\nx: int | str = 1\ny: None | float = None\n")
    assert check(known, {"x": "3", "y": 2}) == ({"x": "3", "y": 2.0}, [])


def test_plain_converts_what_papermill_would_inject_as_text(tmp_path):
    given = {"a": np.int64(3), "b": tmp_path, "c": (1, np.float64(2.0)), "d": {2, 1}, "e": np.arange(2)}
    assert parameters.plain(given) == {"a": 3, "b": str(tmp_path), "c": [1, 2.0], "d": [1, 2], "e": [0, 1]}


def test_parameter_files(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("lr: 1e-4\nepochs: 2\n")
    assert parameters.load_params(path) == {"lr": "1e-4", "epochs": 2}
    path.write_text("# nothing set\n")
    assert parameters.load_params(path) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [1,\n", "line 3"),
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
        ("- a\n- b\n", "found a list"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1"),
    ],
)
def test_a_broken_parameter_file_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="broken.yaml") as caught:
        parameters.load_params(path)
    assert says in str(caught.value)


def test_a_missing_parameter_file_names_its_neighbour(tmp_path):
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(UserError, match="did you mean 'small.yaml'"):
        parameters.load_params(tmp_path / "smal.yaml")


def test_notebooks_without_exactly_one_parameters_cell_are_refused(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text('{"cells": []}')
    with pytest.raises(UserError, match=r"x.ipynb: .*0 code cells tagged"):
        parameters.declared(path)
    path.write_text("not json")
    with pytest.raises(UserError, match="not a notebook"):
        parameters.declared(path)
