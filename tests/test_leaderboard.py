"""The leaderboard: means, paired differences, what others report, and the fronts, against literal references."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cilkit import fronts, metrics
from cilkit.road.leaderboard import leaderboard

HELD = {"benchmark": "cifar100", "protocol": "class", "stream": "tasks", "increments": "10 × 10", "classes": 100}
SEEDS = (1993, 1996, 1997)


def row(learner, order, last, **more):
    line = HELD | {"learner": learner, "head": "softmax", "backbone": "vit", "order_seed": order, "last accuracy": last}
    line |= {"average incremental accuracy": last + 5, "forgetting (max before last)": 10.0, "seconds: train": 60.0}
    return line | {"bytes stored": 0, "cell": f"{learner}-{order}", "artifact": f"run/{learner}-{order}"} | more


def quoted(**more):
    entry = {"table": "t", "row": "SLCA", "learner": "slca", "benchmark": "cifar100", "figure": "last", "value": 91.53}
    return pd.DataFrame([entry | {"std": 0.28, "tag": "remembered", "note": "", "setting": "ViT-B/16"} | more])


@pytest.fixture(scope="module")
def rows():
    rows = [row("slca", order, 80.0 + place, **{"seconds: test": 5.0}) for place, order in enumerate(SEEDS)]
    rows += [row("finetune", order, 70.0 + 2 * place) for place, order in enumerate(SEEDS)]
    return [*rows, row("joint", 1993, 93.0, stream="joint", increments="100")]


def lines_of(found, board=0):
    return {line.learner: line for line in found.boards[board].lines}


def test_a_line_is_the_mean_over_its_runs_and_its_difference_is_paired(rows):
    found = leaderboard(pd.DataFrame(rows), quoted=quoted())
    tasks = next(board for board in found.boards if board.stream == "tasks")
    assert [line.learner for line in tasks.lines] == ["slca", "finetune"] and tasks.baseline == "finetune"
    slca, finetune = tasks.lines
    assert (slca.figures[0].mean, slca.figures[0].spread, slca.figures[0].n) == (81.0, 1.0, 3)
    assert str(slca.figures[1]) == "86.00 ± 1.00" and (slca.seconds, slca.stored) == (65.0, 0.0)
    paired = metrics.paired_interval([80, 81, 82], [70, 72, 74])
    assert (slca.difference.mean, slca.difference.spread, slca.difference.n) == (paired.mean, paired.half_width, 3)
    assert slca.difference.signed == f"+9.00 ± {paired.half_width:.2f}" and finetune.difference is None
    assert (tasks.chance, tasks.joint) == (1.0, 93.0)
    assert [run.seeds for run in slca.runs] == ["order 1993", "order 1996", "order 1997"]
    assert slca.runs[2].cell == "slca-1997"
    joint = next(board for board in found.boards if board.stream == "joint")
    assert math.isnan(joint.joint) and joint.lines[0].difference.n == 0 and joint.lines[0].difference.signed == ""


def test_pairs_are_the_orders_that_both_have_and_another_backbone_is_compared_to_its_own(rows):
    more = [row("slca", 1998, 99.0), row("slca", 1993, 50.0, backbone="resnet", artifact="a")]
    more += [row("finetune", 1993, 45.0, backbone="resnet", artifact="b")]
    board = leaderboard(pd.DataFrame([*rows, *more]), quoted=quoted()).boards[-1]
    of = {(line.learner, line.backbone): line for line in board.lines}
    assert of["slca", "vit"].difference.n == 3 and of["slca", "vit"].difference.mean == 9.0
    assert of["slca", "resnet"].difference.mean == 5.0 and math.isnan(of["slca", "resnet"].difference.spread)
    assert of["finetune", "resnet"].difference is None


def test_the_stated_baseline_goes_before_the_usual_ones(rows):
    board = leaderboard(pd.DataFrame(rows), baselines=["ewc", "slca"], quoted=quoted()).boards[-1]
    assert board.baseline == "slca" and lines_of(
        leaderboard(pd.DataFrame(rows), baselines=["slca"], quoted=quoted()), 1
    )["finetune"].difference.mean == pytest.approx(-9.0)


def test_numbers_of_others_keep_their_tag_and_stand_beside_the_default_head_of_the_same_learner_only(rows):
    raw = [row("slca", order, 60.0, head="raw", artifact=f"run/slca-{order}") for order in SEEDS]
    table = pd.DataFrame([*rows, *raw])
    table["default head"] = table["head"] != "raw"
    others = pd.concat([quoted(), quoted(benchmark="cub200", value=1.0), quoted(learner="ewc", value=2.0)])
    found = leaderboard(table, quoted=others)
    assert found.quoted == "quoted, by tag"
    quotes = {(line.learner, line.head): line.quotes for board in found.boards for line in board.lines}
    (quote,) = quotes.pop(("slca", "softmax"))
    assert quote.text == "91.53 ± 0.28 [remembered]" and quote.difference.signed == "-10.53"
    assert (str(quote.ours), quote.figure, quote.setting) == ("81.00 ± 1.00", "last accuracy", "ViT-B/16")
    assert not any(quotes.values())


def test_axes_that_tell_arms_apart_split_lines_and_those_that_name_seeds_do_not(rows):
    slow = [row("slca", order, 85.0, cell=f"slow-{order}", artifact=f"run/slow-{order}") for order in SEEDS]
    labels = {f"slca-{order}": {"slow_rate": "0.1", "order_seed": str(order)} for order in SEEDS}
    labels |= {f"slow-{order}": {"slow_rate": "0.01", "order_seed": str(order)} for order in SEEDS}
    board = leaderboard(pd.DataFrame([*rows, *slow]), labels, quoted=quoted()).boards[-1]
    assert [(line.labels, len(line.runs)) for line in board.lines if line.learner == "slca"] == [
        ("slow_rate 0.01", 3),
        ("slow_rate 0.1", 3),
    ]
    alone = leaderboard(pd.DataFrame(rows), labels, quoted=quoted()).boards[-1]
    assert [line.labels for line in alone.lines] == ["slow_rate 0.1", ""]  # tells no run apart, but says which it is
    same = {run["cell"]: {"slow_rate": "0.1"} for run in rows}
    assert lines_of(leaderboard(pd.DataFrame(rows), same, quoted=quoted()), 1)["slca"].labels == ""


def test_runs_that_nothing_tells_apart_stand_by_themselves(rows):
    twin = row("slca", 1993, 10.0, artifact="run/other")
    board = leaderboard(pd.DataFrame([*rows, twin]), quoted=quoted()).boards[-1]
    slca = [(line.labels, len(line.runs)) for line in board.lines if line.learner == "slca"]
    assert sorted(slca) == [("", 2), ("run other", 1), ("run slca-1993", 1)]


def test_an_empty_table_has_no_board():
    assert leaderboard(pd.DataFrame(), quoted=quoted()).boards == []


def test_the_front_is_what_no_other_arm_beats():
    random = np.random.default_rng(0)
    for _ in range(50):
        costs, values = random.integers(0, 6, 12).astype(float), random.integers(0, 6, 12).astype(float)
        expected = []
        for cost, value in zip(costs, values, strict=True):
            beaten = any(
                c <= cost and v >= value and (c, v) != (cost, value) for c, v in zip(costs, values, strict=True)
            )
            expected.append(not beaten)
        assert fronts.on_front(costs, values).tolist() == expected
    assert fronts.on_front([1.0, math.nan], [1.0, 2.0]).tolist() == [True, False]


def test_a_front_shows_every_arm_chance_joint_training_and_units():
    rows = [("a", 0.0, 50.0, math.nan), ("b", 2e6, 70.0, 1.0), ("c $x$", 4e6, 60.0, 2.0)]
    table = pd.DataFrame(rows, columns=["arm", "cost", "value", "spread"])
    lines, title = {"chance": 10.0, "joint": 93.0}, "long $x$ " * 40
    figure = fronts.accuracy_against(table, "bytes stored", fronts.words_of_bytes, **lines, title=title)
    (axes,) = figure.axes
    assert "logarithmic" in axes.get_xlabel() and "%" in axes.get_ylabel()
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [name for name in named if name[:3] in ("a  ", "b  ", "c  ")] == ["a  a", "b  b", "c  c $x$"]
    assert "chance (10)" in named and "joint training (93.0)" in named
    stair = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert stair.get_ydata().tolist() == [50.0, 70.0, 70.0]
    figure.canvas.draw()
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[:2] == ["nothing", "1 MB"]
    (shown,) = axes.findobj(lambda part: isinstance(part, Text) and part.get_text().count("$x$") == 40)
    assert shown.get_window_extent().x1 < figure.bbox.x1


def test_a_picture_has_another_key_when_what_it_shows_is_another(rows):
    first, again = (leaderboard(pd.DataFrame(rows), quoted=quoted()).boards[-1] for _ in range(2))
    assert [picture.key for picture in first.pictures] == [picture.key for picture in again.pictures]
    moved = leaderboard(pd.DataFrame([*rows, row("ewc", 1993, 1.0)]), quoted=quoted()).boards[-1]
    assert [p.name for p in moved.pictures] == [p.name for p in first.pictures]
    assert not {p.key for p in moved.pictures} & {p.key for p in first.pictures}
    assert first.pictures[0].draw().startswith(b"\x89PNG")


def test_a_picture_of_many_arms_shows_the_best_and_the_front(monkeypatch):
    table = pd.DataFrame([row("slca", 1993, 10.0 + k, backbone=f"b{k}", **{"bytes stored": 10**k}) for k in range(12)])
    monkeypatch.setattr("cilkit.road.leaderboard.DRAWN", 3)
    drawn = []
    monkeypatch.setattr("cilkit.fronts.accuracy_against", lambda rows, *_, **__: drawn.append(rows) or Figure())
    of_time, of_bytes = leaderboard(table, quoted=quoted()).boards[0].pictures
    assert of_time.caption.endswith("the 3 best of 12 arms and the front.")
    of_time.draw(), of_bytes.draw()
    assert [len(rows) for rows in drawn] == [3, 12]  # every arm is as fast, none is as cheap as a worse one
    assert drawn[0]["arm"].tolist() == ["slca · b11", "slca · b10", "slca · b9"]
