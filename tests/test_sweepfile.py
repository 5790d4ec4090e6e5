"""A sweep's file: what it expands to, in which order, and one sentence for each mistake."""

import pytest
from houses import house, sweep

from cilkit.errors import UserError
from cilkit.workbook.sweepfile import SweepFile, read_sweep, words_of

RUN = "notebook: notebooks/04_run.ipynb\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    return house(tmp_path / "house", monkeypatch)


def cells(home, text):
    return read_sweep(sweep(home, RUN + text)).cells


def test_lists_multiply_zips_go_together_and_cases_are_arms(home):
    text = "axes: {lr: [0.2, 0.3]}\nzip: [{batch_size: [4, 16], order_seed: [1, 2]}]\n"
    text += "cases: [{name: slow, learner: slca, own: {slca: {lr: 1}}}, {learner: ewc}]"
    found = cells(home, text)
    assert len(found) == 2 * 2 * 2
    assert found[0].given == {
        "lr": 0.2,
        "batch_size": 4,
        "order_seed": 1,
        "learner": "slca",
        "own": {"slca": {"lr": 1}},
    }
    assert found[0].labels == {"lr": "0.2", "batch_size": "4", "order_seed": "1", "case": "slow"}
    assert found[1].labels["case"] == "learner ewc"
    assert {(cell.given["batch_size"], cell.given["order_seed"]) for cell in found} == {(4, 1), (16, 2)}


def test_all_arms_of_the_first_seed_come_first_whether_seeds_or_axes_hold_it(home):
    for text in (
        "axes: {learner: [a, b]}\nseeds: {order_seed: [7, 8, 9]}",
        "axes: {order_seed: [7, 8, 9], learner: [a, b]}",
    ):
        found = cells(home, text)
        assert [(c.given["order_seed"], c.given["learner"]) for c in found] == [(s, a) for s in (7, 8, 9) for a in "ab"]
        assert [cell.seed for cell in found] == [0, 0, 1, 1, 2, 2]
    found = cells(home, "seeds: [{order_seed: 7, lr: 0.3}, {order_seed: 8, lr: 0.4}]")
    assert [cell.given for cell in found] == [{"order_seed": 7, "lr": 0.3}, {"order_seed": 8, "lr": 0.4}]


def test_seeds_of_all_grids_go_together(home):
    text = "seeds: {order_seed: [7, 8]}\ngrids: [{axes: {learner: [a]}}, {set: {lr: 0.9}, axes: {learner: [b]}}]"
    assert [(c.given["order_seed"], c.given["learner"]) for c in cells(home, text)] == [
        (7, "a"),
        (7, "b"),
        (8, "a"),
        (8, "b"),
    ]


def test_files_then_set_then_axes_then_overrides_win_in_this_order(home):
    text = "params: params/04_run/cub.yaml\nset: {batch_size: 32}\naxes: {learner: [a, b]}\n"
    text += "overrides:\n- {when: {benchmark: cub, learner: b}, set: {lr: 0.7}}\n- {when: {learner: [c]}, skip: true}"
    first, second = cells(home, text)
    assert first.given == {"benchmark": "cub", "lr": 0.5, "batch_size": 32, "learner": "a"}
    assert second.given["lr"] == 0.7 and first.params == "params/04_run/cub.yaml"
    (left,) = cells(home, "axes: {learner: [a, b]}\noverrides: [{when: {learner: b}, skip: true}]")
    assert left.given == {"learner": "a"}


def test_parameter_files_are_an_axis_too(home):
    first, second = cells(home, "axes: {params: {plain: [], birds200: params/04_run/cub.yaml}}")
    assert (first.labels, first.given) == ({"params": "plain"}, {})
    assert (second.labels, second.given) == ({"params": "birds200"}, {"benchmark": "cub", "lr": 0.5})


def test_a_dotted_name_reaches_into_a_dict_and_into_the_file_that_a_parameter_names(home):
    found = cells(home, "axes: {own.slca.lr: [0.2], own.ewc.weight: [5]}")
    assert found[0].given == {"own": {"slca": {"lr": 0.2}, "ewc": {"weight": 5}}}
    first, second = cells(home, "axes: {backbone.images.per_class: [1, 2]}")
    assert first.given["backbone"] != second.given["backbone"]
    path = home / first.given["backbone"]
    assert path.parent == home / "reports" / "sweeps" / "params" / "03_backbone"
    inner = next(line for line in path.read_text().splitlines() if line.startswith("images: "))
    assert "per_class: 1" in (home / inner.removeprefix("images: ")).read_text() and "epochs: 3" in path.read_text()
    same = cells(home, "axes: {backbone.images.per_class: [1, 2]}")
    assert [cell.given for cell in same] == [first.given, second.given]


def test_what_equals_the_default_is_the_default(home):
    (cell,) = cells(home, "set: {lr: 1e-1, batch_size: 8}")
    assert cell.given == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axis: {lr: [1]}", "unknown key 'axis' (did you mean 'axes'?)"),
        ("axes: {lrr: [1]}", "declares no parameter 'lrr' (did you mean 'lr'?)"),
        ("axes: {lr: []}", "axis lr is empty"),
        ("axes: {lr: 1}", "axis lr: expected a list"),
        ("axes: {lr: [1, 1]}", "two values are called '1'"),
        ("axes: {lr: [fast]}", "parameter lr = 'fast': expected float"),
        (
            "zip: [{lr: [1, 2], batch_size: [1]}]",
            "lists that go together must be of one length; lr has 2, batch_size has 1",
        ),
        ("axes: {lr.x: [1]}", "lr is 0.1, neither a mapping nor a parameter file"),
        ("params: params/04_run/cob.yaml", "did you mean 'cub.yaml'"),
        ("overrides: [{when: {learnr: a}}]", "'learnr' is neither a parameter nor an axis (did you mean 'learner'?)"),
        ("overrides: [{skip: true}]", "no cell is left"),
        ("axes: {order_seed: [1]}\nseeds: {order_seed: [2]}", "stands under both axes and seeds"),
        ("needs: {gpus: -1}", "gpus is -1; expected 0 or more"),
        ("needs: {gpu: 1}", "unknown key 'gpu' (did you mean 'gpus'?)"),
        ("decide: {value: x}", "decide: it lacks by, within"),
        ("cases: [3]", "cases: expected mappings, found 3"),
        ("set: 3", "set: 3 is not what this key holds"),
        ("then: [{params: x}]", "it lacks `notebook"),
    ],
)
def test_a_mistake_is_one_sentence(home, text, says):
    with pytest.raises(UserError) as caught:
        cells(home, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_notebook(home):
    with pytest.raises(UserError, match="there is no sweep file .*y.yaml: did you mean 'x.yaml'"):
        sweep(home, RUN)
        read_sweep(home / "params" / "sweeps" / "y.yaml")
    with pytest.raises(UserError, match="did you mean '04_run.ipynb'"):
        read_sweep(sweep(home, "notebook: notebooks/04_runs.ipynb"))


def test_values_in_words():
    assert words_of("params/03/birds.yaml") == "birds" and words_of(["slca", "ewc"]) == "slca + ewc"
    assert words_of({"a": 1}) == '{"a": 1}' and words_of(0.5) == "0.5"


def test_a_small_sweep_is_not_called_as_the_large_one(tmp_path):
    assert SweepFile(tmp_path / "params/sweeps/x.yaml").name == "x"
    assert SweepFile(tmp_path / "params/sweeps/small/x.yaml").name == "small-x"
    assert SweepFile(tmp_path / "elsewhere/x.yaml").name == "x"
