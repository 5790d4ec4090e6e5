"""Figures of forgetting: they draw what their tables say, fit their canvas, and hold any arms, classes and names."""

import numpy as np
import pandas as pd
import pytest
from fake_run import write_run

from cilkit import analysis, plots
from cilkit.errors import UserError
from cilkit.runs import Run

LONG = ["$x_1$ & <b>bold</b> " + "a very long name " * 4, "plain", "wordwithoutanyspaces" * 5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", (2, 1, 3), per_class=15, recency=3.0)
    run = Run(folder)
    run.settings["class_names"] = LONG + ["c", "d", "<img src=x>"]
    return run


@pytest.fixture(scope="module")
def arms(run):
    return {LONG[0]: (run, "raw"), LONG[2]: (run, "aligned"), "third": (Run(run.folder), None)}


@pytest.fixture(scope="module")
def tables(run, arms):
    of = analysis.of_arms
    first = {LONG[0]: arms[LONG[0]], LONG[2]: arms[LONG[2]]}
    front = analysis.stability_plasticity(arms).assign(gap=[3.0, 2.0, 1.0])
    return {
        "by_task": of(analysis.changes_by_task, first, reference=run),
        "by_class": of(analysis.changes_by_class, first),
        "thefts": analysis.top_thefts(analysis.class_flow(run, "raw"), 6),
        "flow": analysis.task_flow(run, "raw"),
        "recency": of(analysis.recency_over_time, arms),
        "norms": analysis.norms_by_task(of(analysis.weight_norms, first)),
        "knowing": of(analysis.head_and_representation, arms),
        "probes": analysis.heads_beside_probes(arms, {"third": {"linear probe": 77.0}}),
        "drift": of(analysis.feature_drift, arms),
        "means": of(analysis.class_mean_drift, first),
        "calibration": of(analysis.calibration_by_stage, arms),
        "front": front.rename(columns={"last": "last accuracy"}),
        "stands": pd.DataFrame(
            {"arm": LONG, "pairs": [6, 6, 1], "difference": [3.0, -1, 2], "low": [1, -3, np.nan]}
            | {"high": [5, 1, np.nan], "p_holm": [0.0001, 0.4, np.nan], "says": ""}
        ),
    }


@pytest.fixture(scope="module")
def figures(run, arms, tables):
    lines = {"chance": 16.7, "joint": 93.5}
    return {
        "maps": plots.accuracy_heat_maps(analysis.matrices(arms), **lines),
        "by_task": plots.changes(tables["by_task"], **lines),
        "by_class": plots.changes(tables["by_class"], "class", **lines),
        "thefts": plots.theft_bars(tables["thefts"]),
        "flow": plots.flow_maps(tables["flow"]),
        "recency": plots.recency_curves(tables["recency"]),
        "norms": plots.weight_norms(tables["norms"]),
        "knowing": plots.head_and_representation(tables["knowing"], chance={1: 50, 2: 33, 3: 17}, joint=93.5),
        "probes": plots.heads_beside_probes(tables["probes"], **lines),
        "drift": plots.feature_drift(tables["drift"]),
        "means": plots.class_drift(tables["means"]),
        "alignment": plots.alignment(analysis.alignment_by_stage(run), analysis.alignment_by_task(run), **lines),
        "calibration": plots.calibration_curves(tables["calibration"]),
        "gap": plots.gap_scatter(tables["front"], "gap", **lines),
        "front": plots.stability_plasticity(tables["front"], joint=93.5),
        "stands": plots.paired_differences(tables["stands"]),
    }


def test_nothing_is_cut_off_whatever_the_names(figures):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    cut = {}
    for name, figure in figures.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())  # inches
        width, height = figure.get_size_inches()
        if min(box.x0, box.y0) < -0.02 or box.x1 > width + 0.02 or box.y1 > height + 0.02:
            cut[name] = box.extents.round(2).tolist(), (width, height)
    assert cut == {}


def titles(figure) -> str:
    own = [axes.get_title(loc="left") for axes in figure.axes] + [axes.get_title() for axes in figure.axes]
    return " ".join([figure.get_suptitle(), *own])


def test_every_title_asks_a_question(figures):
    assert [name for name, figure in figures.items() if "?" not in titles(figure)] == []


def test_a_dollar_in_a_name_stays_a_dollar(figures):
    texts = [text for figure in figures.values() for text in figure.findobj(lambda one: hasattr(one, "get_parse_math"))]
    assert any("$x_1$" in text.get_text() for text in texts)
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


def test_lines_and_points_are_where_the_tables_say(figures, tables, arms):
    lines = figures["knowing"].axes[0].get_lines()
    rows = tables["knowing"][tables["knowing"]["arm"] == LONG[0]]
    np.testing.assert_allclose(lines[0].get_xydata(), rows[["after_task", "own_head"]])
    points = figures["front"].axes[0].get_lines()[:3]
    np.testing.assert_allclose([p.get_xydata()[0] for p in points], tables["front"][["plasticity", "stability"]])
    widths = [bar.get_width() for bar in figures["thefts"].axes[0].patches]
    np.testing.assert_allclose(widths, tables["thefts"]["gained"])
    cells = figures["flow"].axes[1].images[0].get_array()
    np.testing.assert_allclose(cells, analysis.confusion_between_tasks(arms[LONG[0]][0], 2, "raw"))


def test_panels_that_share_a_scale_hold_all_that_is_drawn(figures):
    for name in ("knowing", "norms", "by_task"):
        for axes in figures[name].axes:
            low, high = axes.get_ylim()
            drawn = np.concatenate([[np.nan], *(np.ravel(line.get_ydata()).astype(float) for line in axes.get_lines())])
            heights = [bar.get_height() for bar in axes.patches]
            values = np.concatenate([drawn, heights])
            values = values[~np.isnan(values)]
            assert (values <= high + 1e-9).all() and (values >= low - 1e-9).all(), name


def test_reference_lines_stand_where_accuracies_are(figures):
    for name in ("by_task", "knowing", "alignment", "gap"):
        labels = [line.get_label() for line in figures[name].axes[0].get_lines()]
        assert "joint training (93.5)" in labels and any(label.startswith("chance") for label in labels), name
    bar = figures["maps"].axes[-1]
    assert [text.get_text() for text in bar.texts] == ["chance", "joint"]


def test_what_is_left_out_is_said(arms, run):
    many = {f"arm {k}": analysis.matrices({"a": (run, "raw")})["a"] for k in range(5)}
    figure = plots.accuracy_heat_maps(many, at_most=2)
    assert "the first 2 of 5 arms" in figure.get_suptitle() and len(figure.axes) == 3  # and the colour bar
    table = pd.concat([analysis.calibration_by_stage(run).assign(arm=f"arm {k}") for k in range(8)])
    figure = plots.calibration_curves(table)
    assert "the first 6 of 8 arms" in figure.get_suptitle() and len(figure.axes[0].get_lines()) == 6


def test_arms_of_one_figure_are_told_apart_by_more_than_colour():
    from cilkit.plots.panels import styles

    names = [f"learner {k}" for k in range(20)]
    look = styles(names)
    assert len({(one["color"], one["marker"]) for one in look.values()}) == 20
    assert styles(names[:1])["learner 0"] == plots.plotstyle.style_of("learner 0")  # alone, a name has its own style


def test_a_hundred_classes_have_points_and_their_tasks(tmp_path):
    run = Run(write_run(tmp_path / "run", (10,) * 10, per_class=2, dim=16))
    figure = plots.changes(analysis.changes_by_class(run, "raw"), "class")
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == [f"task {t}" for t in range(1, 11)]
    assert len(figure.axes[0].get_lines()[0].get_xydata()) == 100


def test_figures_of_nothing_say_so(run, tables):
    with pytest.raises(UserError, match="empty table"):
        plots.calibration_curves(tables["calibration"].head(0))
    with pytest.raises(UserError, match="no arms"):
        plots.accuracy_heat_maps({})
    with pytest.raises(UserError, match="'worth' is unknown"):
        plots.stability_plasticity(tables["front"], y="worth")
    figure = plots.theft_bars(tables["thefts"].head(0))
    assert "No new class took any image" in figure.axes[0].texts[0].get_text()
