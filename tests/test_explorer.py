"""The explorer's answers are the saved outputs, and nothing else; a made-up run on disk stands for a real one."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
from fake_run import write_domain_run, write_run
from PIL import Image

import cilkit
from cilkit import plots
from cilkit.errors import UserError
from cilkit.outputs import Keep
from cilkit.runs import Run
from cilkit.widgets import explorer as widget
from cilkit.widgets.telling import Teller, changed_minds, story_table

SHOWN = [["a", "aligned"], ["b", "raw"]]


@pytest.fixture
def runs(tmp_path):
    """One run under two labels: 6 classes of 20 images, three tasks; old classes lose in its head "raw"."""
    folder = write_run(tmp_path / "run", recency=3.0)
    return {"a": Run(folder), "b": Run(folder)}


@pytest.fixture
def benchmark():
    """As many test images as the run has, image i of one grey level each."""
    pixels = np.repeat(np.arange(120, dtype=np.uint8), 10 * 20 * 3).reshape(120, 10, 20, 3)
    images = cilkit.ImageSet.from_arrays(pixels, np.arange(120) % 6, [f"class {c}" for c in range(6)])
    return type(tiny.stream().benchmark)("grey", images, images)


@pytest.fixture
def view(runs, benchmark):
    return widget.Explorer(runs, lambda run: benchmark)


def test_the_map_is_the_class_accuracy_of_the_outputs(view, runs):
    told = view.answer_map("b", "raw")
    outputs = runs["b"].outputs(2)
    right = outputs.predictions("raw") == outputs.labels
    assert told["classes"] == runs["b"].class_names and len(told["accuracy"]) == 6
    for label, row in enumerate(told["accuracy"]):
        assert row[2] == pytest.approx(100 * right[outputs.labels == label].mean(), abs=0.06)
        assert [value is None for value in row] == [t < label // 2 for t in range(3)]


@pytest.mark.parametrize("keep", [None, Keep(logits=False, features=False)])
def test_a_class_after_a_task_has_its_images_answers_and_confusions(tmp_path, benchmark, keep):
    run = Run(write_run(tmp_path / "kept", recency=3.0, keep=keep))
    view = widget.Explorer({"only": run}, lambda _: benchmark)
    answer, pictures = view.answer_images([["only", "raw"]], "class 1", 1, False, 0)
    reference = Run(write_run(tmp_path / "whole", recency=3.0)).outputs(1)
    rows = np.flatnonzero(reference.labels == 1)
    assert [card["image"] for card in answer["cards"]] == sorted(reference.ids[rows].tolist())
    logits = reference.heads["raw"].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for card in answer["cards"]:
        row = int(np.flatnonzero(reference.ids == card["image"])[0])
        (said,) = card["answers"]
        assert said["top"][0][0] == f"class {logits[row].argmax()}" and len(said["top"]) == 3
        assert said["top"][0][1] == pytest.approx(shares[row].max(), rel=1e-5)
        assert said["true"] == pytest.approx(shares[row, 1], rel=1e-5)
        assert said["right"] == (logits[row].argmax() == 1)
    taken = logits[rows].argmax(1)
    counts = {f"class {c}": int((taken == c).sum()) for c in range(4) if c != 1 and (taken == c).any()}
    assert dict(map(tuple, answer["confusions"][0])) == counts and answer["tested"] == 20
    for card, picture in zip(answer["cards"], pictures, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        assert pixels.shape == (10, 20, 3) and (pixels == card["image"]).all()


def test_only_wrong_ones_are_those_that_one_of_the_runs_got_wrong(view, runs):
    answer, _ = view.answer_images(SHOWN, "class 0", 2, True, 0)
    labels, ids = runs["a"].labels(2), runs["a"].ids(2)
    wrong = (runs["a"].predictions(2, "aligned") != labels) | (runs["b"].predictions(2, "raw") != labels)
    assert [card["image"] for card in answer["cards"]] == sorted(ids[wrong & (labels == 0)].tolist())
    assert all(not all(said["right"] for said in card["answers"]) for card in answer["cards"])
    assert 0 < answer["count"] < answer["tested"] == 20


def test_pages_hold_sixty_images_at_most(tmp_path, benchmark):
    run = Run(write_run(tmp_path / "large", increments=(1, 1), per_class=100))
    view = widget.Explorer({"large": run}, lambda _: (_ for _ in ()).throw(UserError("none here")))
    first, _ = view.answer_images([["large", "raw"]], "class 0", 1, False, 0)
    last, pictures = view.answer_images([["large", "raw"]], "class 0", 1, False, 1)
    assert (len(first["cards"]), len(last["cards"]), last["pages"], pictures) == (60, 40, 2, [])
    assert not {card["image"] for card in first["cards"]} & {card["image"] for card in last["cards"]}
    assert last["notes"] == ["no images, since none here"]


def test_an_image_through_time(view, runs):
    image = int(runs["a"].ids(0)[0])
    told, pictures = view.answer_story(SHOWN, image)
    assert [len(lines) for lines in told["stories"]] == [3, 3] and len(pictures) == 1
    table = story_table(runs["b"], image, "raw")
    label = int(runs["b"].labels(0)[0])
    assert told["true"] == f"class {label}" and (table["true class"] == told["true"]).all()
    for t, (line, row) in enumerate(zip(told["stories"][1], table.itertuples(), strict=True)):
        place = int(np.flatnonzero(runs["b"].ids(t) == image)[0])
        assert line["top"][0][0] == row.answer == f"class {runs['b'].predictions(t, 'raw')[place]}"
    late = int(runs["a"].ids(2)[runs["a"].labels(2) == 5][0])
    assert story_table(runs["a"], late)["after task"].tolist() == [3]
    with pytest.raises(UserError, match="test image 9999 was not tested"):
        story_table(runs["a"], 9999)


def test_changed_minds_were_right_once_and_are_wrong_at_the_end(runs):
    run = runs["b"]
    found = changed_minds(run, "raw", count=1000)
    last = dict(zip(run.ids(2).tolist(), run.predictions(2, "raw") == run.labels(2), strict=True))
    once = {
        int(i)
        for t in range(3)
        for i, right in zip(run.ids(t), run.predictions(t, "raw") == run.labels(t), strict=True)
        if right
    }
    assert set(found) == {image for image, right in last.items() if not right and image in once} and found
    teller = Teller(run)
    surest = [max(line["true"] for line in teller.story("raw", image) if line and line["right"]) for image in found]
    assert surest == sorted(surest, reverse=True)
    figure = plots.mind_changes({"b": story_table(run, found[0], "raw")}, seen={1: 2, 2: 4, 3: 6})
    assert figure.axes[0].lines[1].get_ydata()[0] == pytest.approx(100 * teller.story("raw", found[0])[0]["true"])


def test_runs_of_other_images_or_classes_are_told_apart(view, tmp_path):
    settings = write_run(tmp_path / "other", increments=(1, 2)) / "run.json"
    settings.write_text(settings.read_text().replace('"class 0"', '"class zero"'))
    view._tellers["c"] = Teller(Run(settings.parent))
    answer, _ = view.answer_images([["a", "raw"], ["c", "raw"]], "class 1", 2, False, 0)
    assert answer["notes"] == ["c was tested on other images than a; its answers are left out."]
    assert {tuple(said is None for said in card["answers"]) for card in answer["cards"]} == {(False, True)}
    answer, _ = view.answer_images([["a", "raw"], ["c", "raw"]], "class 0", 2, False, 0)
    assert answer["notes"] == ["c does not know the class class 0."]
    answer, _ = view.answer_images([["a", "raw"]], "class 5", 0, False, 0)
    assert answer["cards"] == [] and "learnt later" in answer["notes"][0]
    with pytest.raises(UserError, match="there is no run 'd' here"):
        view.answer_map("d", "raw")
    with pytest.raises(UserError, match="head 'row' is unknown"):
        view.answer_map("a", "row")


def test_of_a_domain_run_the_images_are_those_that_its_accuracy_is_of(tmp_path):
    teller = Teller(Run(write_domain_run(tmp_path / "domains")))
    for t in range(3):
        told = teller.of_class("softmax", t, "class 1")
        assert len(told.ids) == 6 * (t + 1)
        assert 100 * told.right.mean() == pytest.approx(teller.accuracy("softmax")[1, t])


def test_the_picture_is_small_and_the_words_say_what_it_shows(view, runs):
    still = view.still()
    assert Image.open(io.BytesIO(still)).format == "PNG" and len(still) < 150_000
    forgotten = int(
        np.nanargmax(np.nanmax(runs["a"].class_accuracy("aligned"), 0) - runs["a"].class_accuracy("aligned")[-1])
    )
    assert f"'class {forgotten}' lost most" in view.words() and "6 classes after each of 3 tasks" in view.words()
    data, metadata = view._repr_mimebundle_()
    assert data["image/png"] == still and metadata["image/png"]["alt"] == view.words()


def test_a_picture_of_many_classes_draws_some_and_says_so(tmp_path):
    run = Run(write_run(tmp_path / "many", increments=(20, 20), per_class=2))
    view = widget.Explorer({"many": run}, lambda _: (_ for _ in ()).throw(UserError("none here")))
    assert len(view.still()) < 150_000


def test_thumbnails_of_large_images_are_small_and_of_small_ones_exact():
    random = np.random.default_rng(0)
    large = Image.open(io.BytesIO(widget.thumbnail(random.integers(0, 255, (300, 400, 3)).astype(np.uint8))))
    assert large.size == (96, 72)
    small = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(widget.thumbnail(small))).convert("RGB")), small)


def test_runs_are_picked_from_the_table(runs, benchmark):
    table = pd.DataFrame(
        {
            "artifact": ["run/aa11", "run/aa11", "run/bb22"],
            "digest": ["1", "1", "2"],
            "learner": "fake",
            "order_seed": [1993, 1993, 1996],
            "default head": [True, False, True],
            "last accuracy": [50.123, 40.0, np.nan],
        }
    )
    asked = []
    view = widget.Explorer(runs, lambda _: benchmark, table, lambda row: asked.append(row) or runs["a"])
    start = view.answer_start()
    assert start["columns"] == ["learner", "order_seed", "last accuracy"]
    assert start["rows"] == [[0, "fake", 1993, 50.12], [1, "fake", 1996, None]]
    label = view.answer_pick(1)["run"]["label"]
    assert label == "fake, order 1996 (bb22)" and asked[0]["digest"] == "2"
    assert len(view.answer_map(label, "raw")["accuracy"]) == 6
    with pytest.raises(UserError, match="there is no run to look at"):
        widget.Explorer({}, lambda _: benchmark)


def test_exploring_needs_no_torch(tmp_path):
    folder = write_run(tmp_path / "plain")
    code = (
        "import sys; from cilkit.widgets.explorer import Explorer; from cilkit.runs import Run; "
        "from cilkit.errors import UserError\n"
        "def none(run): raise UserError('none')\n"
        f"view = Explorer({{'x': Run({str(folder)!r})}}, none)\n"
        "view.answer_images([['x', 'raw']], 'class 0', 2, False, 0)\n"
        "print(sorted(set(sys.modules) & {'torch', 'timm', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
