"""One style of figures: colours that everyone can tell apart, sizes for three places, and files that are the same."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cilkit import plots, plotstyle
from cilkit.errors import UserError
from cilkit.plotstyle import arms as arms_of_style

SETS = {  # the arms of the notebooks' own figures, and of the README's
    "04": ["nearest mean", "sequential fine-tuning", "slow learner", "SLCA"],
    "05": ["none", "distillation", "replay", "both", "the same bytes of real images", "nothing"],
    "06": ["GMM", "zero-shot", "linear head", "class means"],
    "07": ["nearest class mean", "sequential fine-tuning", "slow learner", "SLCA", "joint"],
    "study": ["no pre-training", "foreseen realm", "foreseen, overlap-filtered", "unrelated realm", "shuffled labels",
              "font renderings"],
    "four_methods": ["iCaRL", "LwM", "MAE-CIL", "MAE-CIL, whole exemplars", "GMM"],
}  # fmt: skip

# What readers without red or green cones see, in linear RGB: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency", 2009, severity 1.0.
EYES = {
    "all cones": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def linear(colour: str) -> np.ndarray:
    """sRGB as written to linear RGB, (3,)."""
    encoded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB to CIELAB (D65), (3,)."""
    t = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    light, dark = sorted((float(XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def nearest(colours, eyes) -> float:
    """The smallest distance in CIELAB (CIE 1976) between two of the colours as these eyes see them."""
    seen = [lab(np.array(eyes) @ linear(colour)) for colour in colours]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


def test_the_measures_know_what_is_known():
    assert contrast("#FFFFFF", "#000000") == pytest.approx(21) and contrast("#777777", "#FFFFFF") == pytest.approx(
        4.48, abs=0.01
    )
    np.testing.assert_allclose(lab(linear("#FFFFFF")), [100, 0, 0], atol=0.01)
    assert nearest(["#FF0000", "#8B6F00"], EYES["no green cones"]) < nearest(["#FF0000", "#8B6F00"], np.eye(3)) / 2


@pytest.mark.parametrize("eyes", EYES)
def test_colours_can_be_told_apart_by_everyone(eyes):
    """15 is far above what is just noticeable (2.3), also for a thin line; black is that of the reference lines."""
    assert nearest([*plotstyle.COLOURS, "#000000"], EYES[eyes]) > 15


def test_lines_and_markers_stand_out_from_white():
    for colour in plotstyle.COLOURS:
        assert contrast(colour, "#FFFFFF") >= 3, colour


@pytest.mark.parametrize("name", SETS)
def test_arms_of_a_usual_figure_differ_in_colour_and_marker(name):
    styles = plotstyle.styles_of(SETS[name])
    assert len({style["color"] for style in styles.values()}) == len(styles) <= 7
    assert len({style["marker"] for style in styles.values()}) == len(styles)
    assert len({*plotstyle.hatches(styles).values()}) == len(styles)


def test_a_learner_looks_the_same_in_every_figure():
    from cilkit.learners import NAMES

    alone = {name: plotstyle.style_of(name) for name in NAMES}
    assert plotstyle.styles_of(NAMES) == alone, "two learners share a style"
    for names in SETS.values():
        for arm, style in plotstyle.styles_of(names).items():
            if arms_of_style._known(arm):
                assert style == plotstyle.style_of(arm)
    same = [("slca, raw", "slow learner"), ("slow_learner", "slow learner"), ("class means", "nearest_mean")]
    same += [("sequential fine-tuning", "finetune"), ("MAE-CIL", "mae_cil"), ("SLCA++", "slca_pp")]
    for one, other in same:
        assert plotstyle.style_of(one) == plotstyle.style_of(other), one


def test_variants_keep_the_learners_colour_and_differ_in_line_and_marker():
    from cilkit.learners import PLUGINS

    names = ["icarl", "icarl, raw", *(f"icarl+{plugin}" for plugin in PLUGINS)]
    styles = plotstyle.styles_of(names)
    assert len({style["color"] for style in styles.values()}) == 1
    assert len({style["marker"] for style in styles.values()}) == len(names)
    assert len({str(styles[name]["linestyle"]) for name in names[2:]} - {"-", "--", ":"}) == len(PLUGINS)


def test_an_unknown_name_has_a_stable_style_and_avoids_what_is_there():
    assert plotstyle.style_of("my method") == plotstyle.style_of("my method")
    code = "from cilkit import plotstyle; import json; print(json.dumps(plotstyle.style_of('my method')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == plotstyle.style_of("my method")
    many = [*SETS["07"], *(f"arm {n}" for n in range(40))]
    styles = plotstyle.styles_of(many)
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(many)
    assert styles["SLCA"] == plotstyle.style_of("SLCA")


# ---------------------------------------------------------------- notebook, paper, slide


def curves(arms=SETS["07"]):
    rows = [(arm, 1993, seen, 90.0 - seen - place) for place, arm in enumerate(arms) for seen in (2, 4, 6)]
    table = pd.DataFrame(rows, columns=["arm", "order", "classes_seen", "accuracy"])
    title = "What does pre-training on paintings bring, over all classes seen and five learners?"
    return plots.accuracy_curves(table, chance=10, joint=93, title=title)


def texts(figure) -> set[float]:
    import matplotlib.text

    return {text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()}


def inside(figure) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    return min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


@pytest.mark.parametrize(("place", "width"), [("notebook", 6.2), ("paper", 3.35)])
def test_a_figure_has_the_width_of_its_place(place, width):
    with plotstyle.using(place):
        assert curves().get_figwidth() == width


def test_a_paper_has_small_letters_thin_lines_and_the_legend_below():
    with plotstyle.using("paper"):
        figure = curves()
        wide = plots.accuracy_heat_map(pd.DataFrame(np.eye(10) * 100))
    assert texts(figure) == {8, 9} and wide.get_figwidth() == 6.9
    assert inside(figure) and inside(wide)
    axes = figure.axes[0]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert axes.get_legend() is None and named[:5] == SETS["07"]
    assert figure.legends[0].get_window_extent().y1 < axes.get_window_extent().y0
    assert axes.get_lines()[0].get_linewidth() == 1 and "\n" in axes.get_title(loc="left")


def test_a_slide_is_sixteen_to_nine_and_its_letters_are_large():
    with plotstyle.using("slide"):
        figure = curves()
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9) and inside(figure)
    assert min(texts(figure)) * 13.33 / width > 16  # points, on a slide of the usual 13.33 inches


def test_the_environment_says_it_for_a_whole_run(monkeypatch):
    monkeypatch.setenv("CILKIT_FIGURES", "paper, svg,pdf")
    assert plotstyle.context() is plotstyle.CONTEXTS["paper"] and plotstyle.formats() == ("png", "pdf", "svg")
    with plotstyle.using("slide"):
        assert plotstyle.context() is plotstyle.CONTEXTS["slide"] and plotstyle.formats() == ("png",)
    assert curves().get_figwidth() == 3.35
    monkeypatch.setenv("CILKIT_FIGURES", "papre")
    with pytest.raises(UserError, match="cannot be 'papre' .did you mean 'paper'.*CILKIT_FIGURES"):
        curves()
    with pytest.raises(UserError, match="one place at a time"):
        plotstyle.use("paper", "slide")


# ---------------------------------------------------------------- files


def test_files_are_the_same_each_time_and_hold_their_text():
    with plotstyle.using("paper", "pdf", "svg"):
        first, second = plotstyle.files_of(curves()), plotstyle.files_of(curves())
    assert first == second and [*first] == ["png", "pdf", "svg"]
    assert b"/CreationDate" not in first["pdf"] and b"/FontFile2" in first["pdf"]  # TrueType, embedded
    svg = first["svg"].decode()
    assert "sequential fine-tuning</text>" in svg and "<dc:date>" not in svg and 'href="http' not in svg


@pytest.fixture
def book(tmp_path, monkeypatch):
    from cilkit.workbook.book import Book

    monkeypatch.setenv("CILKIT_REPORT_DIR", str(tmp_path))
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    return Book("nb", tmp_path / "nb.ipynb", {}, {}, None)


def test_a_book_lists_every_kind_of_file_and_what_the_figure_shows(book):
    with plotstyle.using("pdf", "svg"):
        book.figure(curves(), "curves", caption="Five learners.")
    (entry,) = json.loads((book.folder / "book.json").read_text())["figures"]
    assert entry["also"] == ["curves.pdf", "curves.svg"]
    assert re.search("across: classes seen. up: accuracy .%.. shown: nearest class mean; .*; chance", entry["shows"])
    assert {path.name for path in book.folder.iterdir()} == {"book.json", "curves.png", "curves.pdf", "curves.svg"}
    book.figure(curves(), "curves")  # without: what an earlier run left does not stay beside it
    assert {path.name for path in book.folder.iterdir()} == {"book.json", "curves.png"}


def test_a_figure_that_cannot_be_drawn_in_one_kind_leaves_none(book, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, *args, format, **kwargs):
        if format == "svg":
            raise OSError("no room")
        args[0].write(b"drawn")

    monkeypatch.setattr(Figure, "savefig", fail)
    with plotstyle.using("pdf", "svg"), pytest.raises(OSError, match="no room"):
        book.figure(curves(), "curves")
    assert [path.name for path in book.folder.iterdir()] == ["book.json"]
    assert json.loads((book.folder / "book.json").read_text())["figures"] == []
