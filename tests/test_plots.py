"""Figures: every one draws what its table says, fits its canvas, and is saved with the table behind it."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_run import write_run
from PIL import Image

from cilkit import analysis, plots
from cilkit.errors import UserError
from cilkit.runs import Run

ARMS = ["no pre-training", "foreseen, overlap-filtered", "foreseen"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(write_run(tmp_path_factory.mktemp("runs") / "run", increments=(2, 2, 2), recency=4.0))


def arms_table():
    rows = [(arm, order, 20.0 * place + k) for place, arm in enumerate(ARMS) for k, order in enumerate((1993, 1996))]
    return pd.DataFrame(rows, columns=["arm", "order", "last accuracy"])


def bytes_table():
    kinds = dict(zip(ARMS, [("nothing", 0), ("exemplars", 614_400), ("exemplars", 614_400)], strict=True))
    table = arms_table()
    return table.assign(kind=[kinds[arm][0] for arm in table["arm"]], bytes=[kinds[arm][1] for arm in table["arm"]])


def curves_table():
    table = pd.concat([arms_table().assign(classes_seen=seen) for seen in (2, 4, 6)], ignore_index=True)
    return table.rename(columns={"last accuracy": "accuracy"})


def pictures(n=12):
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def phases_table():
    rows = [(arm, phase, 10.0 * k, 2**20 * k, 1) for arm in ARMS for k, phase in enumerate(("train", "test"), 1)]
    return pd.DataFrame(rows, columns=["arm", "phase", "seconds", "peak_bytes", "calls"])


def figures_of(run):
    groups = dict.fromkeys(run.class_names[:3], "foreseen") | dict.fromkeys(run.class_names[3:], "unforeseen")
    points = np.random.default_rng(0).normal(size=(60, 5))
    statistics = analysis.image_statistics(pictures())
    return {
        "accuracy_heat_map": plots.accuracy_heat_map(run.accuracy),
        "confusion_map": plots.confusion_map(analysis.confusion_between_tasks(run)),
        "score_map": plots.score_map(run.accuracy, "A sweep", ("images a class", "classes")),
        "similarity_map": plots.similarity_map(analysis.feature_similarity(run)),
        "accuracy_curves": plots.accuracy_curves(curves_table(), chance={2: 50, 4: 25, 6: 16.7}, joint=93.5),
        "arms_comparison": plots.arms_comparison(arms_table(), chance=10, joint=93.5),
        "accuracy_against_bytes": plots.accuracy_against_bytes(bytes_table(), chance=10, joint=93.5),
        "forgetting_of_tasks": plots.forgetting_bars(analysis.forgetting_by_task(run)),
        "forgetting_of_classes": plots.forgetting_bars(analysis.forgetting_by_class(run), "class"),
        "group_bars": plots.group_bars(
            analysis.accuracy_by_group(run, groups), "group", {"learned": "when learnt", "last": "last"}, chance=10
        ),
        "confusion_flow": plots.confusion_flow(analysis.confusion_flow(run)),
        "drift_curves": plots.drift_curves(analysis.class_mean_drift(run)),
        "class_accuracy_map": plots.class_accuracy_map(analysis.accuracy_by_class(run)),
        "class_accuracy_map_of_many": plots.class_accuracy_map(pd.DataFrame(np.eye(10, 100) * 100)),
        "reliability_diagram": plots.reliability_diagram(
            {"aligned": analysis.reliability(run), "raw": analysis.reliability(run, head="raw")}, chance=16.7
        ),
        "phase_bars": plots.phase_bars(phases_table()),
        "phase_bars_of_memory": plots.phase_bars(phases_table(), "peak_bytes"),
        "contact_sheet": plots.contact_sheet(pictures(), columns=4, rows=["digit zero", "digit one", "digit two"]),
        "domain_scatter": plots.domain_scatter(analysis.projection(points, points + 1)),
        "histograms": plots.histograms({"real": statistics, "painted": statistics}, "Image statistics"),
    }


@pytest.fixture(scope="module")
def figures(run):
    return figures_of(run)


def test_nothing_is_cut_off(figures):
    assert_inside(figures)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["paper", "slide"])
def test_nothing_is_cut_off_in_a_paper_or_on_a_slide(run, place):
    with plots.plotstyle.using(place):
        assert_inside(figures_of(run))


def assert_inside(figures):
    """The box around all that is drawn lies inside the canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, figure in figures.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())  # inches
        width, height = figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, f"{name}: {box}"


def test_axes_name_their_units(figures):
    assert figures["accuracy_curves"].axes[0].get_ylabel() == "accuracy (%)"
    assert figures["arms_comparison"].axes[0].get_ylabel() == "last accuracy (%)"
    assert figures["forgetting_of_tasks"].axes[0].get_ylabel() == "accuracy lost (percentage points)"
    assert figures["confusion_flow"].axes[0].get_ylabel() == "share of old classes' images (%)"


def test_reference_lines_stand_where_they_were_asked_for(figures):
    lines = {line.get_label(): line for line in figures["arms_comparison"].axes[0].get_lines()}
    assert set(lines["joint training (93.5)"].get_ydata()) == {93.5} and set(lines["chance (10)"].get_ydata()) == {10}
    curve = next(line for line in figures["accuracy_curves"].axes[0].get_lines() if line.get_label() == "chance")
    assert list(curve.get_ydata()) == [50, 25, 16.7]


def test_heat_map_writes_the_lower_triangle_only(run, figures):
    written = [text.get_text() for text in figures["accuracy_heat_map"].axes[0].texts]
    matrix = run.accuracy.to_numpy()
    assert written == [f"{matrix[t, i]:.0f}" for t in range(3) for i in range(t + 1)]


def test_bars_are_as_high_as_the_table_says(run, figures):
    table = analysis.confusion_flow(run)
    heights = np.array([bar.get_height() for bar in figures["confusion_flow"].axes[0].patches]).reshape(4, -1)
    np.testing.assert_allclose(heights.T, table[list(analysis.FATES)])
    lost = [bar.get_height() for bar in figures["forgetting_of_tasks"].axes[0].patches]
    np.testing.assert_allclose(lost, analysis.forgetting_by_task(run)["forgetting_max_before_last"])


def test_reliability_draws_a_point_a_bin_and_the_diagonal(run, figures):
    above, below = figures["reliability_diagram"].axes
    lines = {line.get_label().split(" ")[0]: line for line in above.get_lines()}
    table = analysis.reliability(run, head="raw")
    np.testing.assert_allclose(lines["raw"].get_xydata(), table[["confidence", "accuracy"]])
    np.testing.assert_array_equal(lines["as"].get_xydata(), [[0, 0], [100, 100]])
    np.testing.assert_allclose(sum(below.get_lines()[1].get_ydata()), 100)
    assert above.get_ylabel() == "accuracy (%)" and below.get_xlabel() == "mean confidence of the bin (%)"


def test_phases_are_as_long_as_the_table_says(figures):
    seconds, memory = figures["phase_bars"].axes[0], figures["phase_bars_of_memory"].axes[0]
    assert [bar.get_height() for bar in seconds.patches] == [10, 20] * 3 and seconds.get_ylabel() == "seconds"
    assert [bar.get_height() for bar in memory.patches] == [1, 2] * 3 and memory.get_ylabel() == "peak memory (MiB)"
    assert [text.get_text() for text in seconds.get_xticklabels()] == ["train", "test"]


def test_bars_are_told_apart_without_colour(figures):
    groups = {patch.get_facecolor(): patch.get_hatch() for patch in figures["phase_bars"].axes[0].patches}
    assert len(groups) == 3 == len({*groups.values()})
    (alone,) = {patch.get_hatch() for patch in figures["forgetting_of_tasks"].axes[0].patches}
    assert not alone


def test_curves_keep_the_order_of_the_arms(figures):
    labels = [text.get_text() for text in figures["accuracy_curves"].axes[0].get_legend().get_texts()]
    assert labels[:3] == ARMS


def test_contact_sheet_shows_the_images_unchanged(figures):
    shown = [axes.images[0].get_array() for axes in figures["contact_sheet"].axes]
    np.testing.assert_array_equal(np.stack(shown), pictures())
    gaps = plots.contact_sheet([*pictures(2), None, *pictures(1)], columns=2)
    assert [len(axes.images) for axes in gaps.axes] == [1, 1, 0, 1]
    with pytest.raises(UserError, match="no images"):
        plots.contact_sheet(pictures(0))


def test_saving_writes_the_picture_and_the_table_and_is_deterministic(tmp_path):
    table = arms_table()
    paths = [plots.save(plots.arms_comparison(table), tmp_path / name, "arms", table) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert Image.open(paths[0]).size[1] == 3.8 * plots.plotstyle.DPI
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "arms.csv", index_col=0), table)


def test_drawing_leaves_the_readers_settings_alone(run):
    import matplotlib

    names = set(matplotlib.rcParams) - {"backend"}  # settled by whoever first asks for it
    before = {name: matplotlib.rcParams[name] for name in names}
    plots.save(plots.accuracy_heat_map(run.accuracy), folder := run.folder.parent, "heat")
    assert {name: matplotlib.rcParams[name] for name in names} == before and (folder / "heat.png").exists()


LIGHT = """
import sys
from pathlib import Path
from cilkit import analysis, data, metrics, plots
from cilkit.runs import Run
run = Run(sys.argv[1])
run.summary()
analysis.forgetting_by_task(run)
analysis.confusion_flow(run)
analysis.class_mean_drift(run)
last = run.outputs(-1)
analysis.probe_scores(last.features, last.labels, last.features, last.labels)
figure = plots.accuracy_heat_map(run.accuracy)
plots.save(figure, Path(sys.argv[2]), "heat", run.accuracy)
heavy = [name for name in ("torch", "torchvision", "timm", "diffusers", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


def test_reading_analysing_and_drawing_need_no_torch(run, tmp_path):
    """And no other heavy library: 07 and every cache hit stay light."""
    command = [sys.executable, "-c", LIGHT, str(run.folder), str(tmp_path / "figures")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["heat.csv", "heat.png"]


def test_arms_of_equal_bytes_stand_side_by_side_and_nothing_has_its_place():
    axes = plots.accuracy_against_bytes(bytes_table()).axes[0]
    places = [drawn.lines[0].get_xdata()[0] for drawn in axes.containers]
    assert places[0] < 1e5 < places[1] < places[2] and places[2] / places[1] == pytest.approx(1.15)
    axes.figure.canvas.draw()
    assert axes.get_xticklabels()[0].get_text() == "nothing"
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert all(name.startswith(letter) for name, letter in zip(named, "abc", strict=True))
