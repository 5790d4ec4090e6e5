"""Galleries: which images in which order against plain pandas, decisions that only grow, and what a view is told."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

import cilkit
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import ShardWriter, open_set
from cilkit.errors import UserError
from cilkit.synthesis import curation, writer
from cilkit.synthesis.curation import Decisions
from cilkit.synthesis.neighbours import Neighbours
from cilkit.widgets import base, sheets
from cilkit.widgets.browsing import LEFT_OUT, STATES, SUSPECT, Collection, Query, manifest_row
from cilkit.widgets.gallery import Gallery

MARKUP = "<img src=x onerror=alert(1)> $x$ & “b”"
RULES = {"sharpness": ">=20"}
STATE_OF = {"accept": "accepted", "reject": "rejected"}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """60 images of three classes in no order; the last class is named in markup."""
    pixels, labels = tiny.image_set(3, 20).images(), tiny.image_set(3, 20).labels
    return ImageSet.from_arrays(pixels, labels, ["zero", "one", MARKUP], ids=[f"i{k:02d}" for k in range(60)])


@pytest.fixture(scope="module")
def scores(images) -> pd.DataFrame:
    """Scores of 50 of them in another order; one is missing, and many are equal."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": images.ids, "sharpness": random.integers(0, 12, 60) * 4.0, "blank": False})
    table = table.assign(cluster=-1, mine=random.normal(size=60)).sample(50, random_state=0)
    table.iloc[7, table.columns.get_loc("sharpness")] = np.nan
    return table


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "folder" / "decisions.jsonl"


@pytest.fixture
def collection(images, scores, path) -> Collection:
    return Collection(images, scores, Decisions(path), RULES)


def slowly(collection, scores, judged, query) -> list[str]:
    """The same by pandas: ids under a query, from the scores, the rules and the lines of the file."""
    one = collection.images
    table = pd.DataFrame({"image_id": one.ids, "class": [one.class_names[label] for label in one.labels]})
    table = table.merge(scores, on="image_id", how="left")
    table["reason"] = [judged.get(i, "not scored") or "kept" for i in table["image_id"]]
    last = {}
    file = collection.decisions.path
    for line in file.read_text().splitlines() if file.exists() else ():
        last[json.loads(line)["image_id"]] = STATE_OF.get(json.loads(line)["decision"], "undecided")
    table["state"] = [last.get(i, "undecided") for i in table["image_id"]]
    table["out"] = ~table["reason"].isin(["kept", "not scored"])
    if query.class_name:
        table = table[table["class"] == query.class_name]
    if query.decision:
        table = table[table["state"] == query.decision]
    if query.verdict:
        table = table[table["out"] if query.verdict == LEFT_OUT else table["reason"] == query.verdict]
    if query.sort == "order":
        return table["image_id"].tolist()[:: -1 if query.descending else 1]
    return table.sort_values(
        query.sort, ascending=not query.descending, kind="stable", na_position="last"
    )["image_id"].tolist()  # fmt: skip


@pytest.mark.parametrize("sort", ["order", "sharpness", "mine"])
@pytest.mark.parametrize("descending", [False, True])
def test_order_and_filters_are_those_of_a_plain_table(collection, scores, sort, descending):
    collection.decide(range(5, 20), "reject", "A. Reader", "blurred")
    collection.decide([7, 30, 31], "accept")
    judged = curation.decided(scores, RULES).set_index("image_id")["reason"].to_dict()
    seen = 0
    for name in ("", MARKUP):
        for decision in ("", *STATES):
            for verdict in ("", "kept", LEFT_OUT, "sharpness not >=20", "not scored"):
                query = Query(sort, descending, name, decision, verdict)
                found = collection.ids[collection.select(query)].tolist()
                assert found == slowly(collection, scores, judged, query), query
                seen += len(found)
    assert seen > 150


def test_what_the_rules_leave_out_comes_first_and_the_least_sharp_of_it(collection, scores):
    places = collection.select(Query(SUSPECT))
    out = collection.verdicts[places] == "sharpness not >=20"
    number = int(out.sum())
    assert out[:number].all() and number > 10 and (collection.verdicts[places[-10:]] == "not scored").all()
    for part in (places[:number], places[number:-10]):
        sharp = collection.scores["sharpness"][part]
        assert (np.diff(sharp[~np.isnan(sharp)]) >= 0).all()


def test_pages_hold_every_image_once_and_stay_while_one_decides(collection):
    view = Gallery(collection, page=7)
    query = {"sort": "sharpness", "decision": "undecided"}
    seen = []
    for number in range(9):
        told, pictures = view.answer_page(query, number)
        assert len(told["tiles"]) == len(pictures) == (7 if number < 8 else 4) and told["pages"] == 9
        seen += [tile["id"] for tile in told["tiles"]]
        view.answer_decide([told["tiles"][0]["place"]], "reject")
    assert sorted(seen) == collection.ids.tolist(), "an image decided about leaves no gap that others slip into"
    told, _ = view.answer_page(query, 99, anew=True)
    assert (told["total"], told["number"], len(told["tiles"])) == (51, 7, 2), "asked anew, it is gone; the last page"


def test_pictures_are_the_images_and_travel_in_buffers_only(collection, images):
    view = Gallery(collection, page=60)
    told, pictures = view.answer_page({})
    json.dumps(told)
    for tile, picture in zip(told["tiles"], pictures, strict=True):
        found = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
        assert np.abs(images.images() - found).mean(axis=(1, 2, 3)).argmin() == tile["place"]
    state = json.dumps(view.get_state(), default=str)
    assert len(state) < 60_000 and "i07" not in state, "the notebook keeps the program, no image and no decision"


def test_a_file_only_grows_and_undo_is_a_line_too(collection, path):
    parts, before = [b""], collection.state.copy()
    steps = [
        lambda: collection.decide([3], "reject", "A", "blurred"),
        lambda: collection.decide(range(10), "accept", "B"),
        lambda: collection.decide([3], "withdrawn", "A"),
        collection.undo,
        collection.undo,
        lambda: collection.undo("C"),
        lambda: collection.decide([3], "reject"),
    ]
    for step in steps:
        step()
        content = path.read_bytes()
        assert content.startswith(parts[-1]) and len(content) > len(parts[-1])
        parts.append(content)
    lines = [json.loads(line) for line in parts[-1].splitlines()]
    assert [line["decision"] for line in lines] == (
        ["reject"] + ["accept"] * 10 + ["withdrawn", "accept"] + ["withdrawn"] * 3 + ["reject"] + ["withdrawn"] * 6
        + ["withdrawn", "reject"]
    )  # fmt: skip
    assert (lines[12]["by"], lines[16]["by"], lines[16]["why"]) == ("B", "A", "blurred"), "as it was before"
    assert (lines[-2]["by"], lines[-2]["undone"]) == ("C", "C") and all(line["when"] for line in lines)
    collection.undo()
    assert (collection.state == before).all() and collection.undo() == 0 and len(Decisions(path)) == 0


def test_bulk_says_how_many_does_exactly_those_and_is_one_step(collection, path):
    view = Gallery(collection)
    asked = {"query": {"class_name": "one"}, "score": "sharpness", "comparison": "<", "threshold": 20}
    collection.decide([int(np.flatnonzero(collection.labels == 1)[0])], "accept")
    sharp = collection.scores["sharpness"]
    below = np.flatnonzero((collection.labels == 1) & (sharp < 20))
    wanted = below[collection.state[below] == 0]
    told = view.answer_count(**asked, decision="reject")
    assert (told["count"], told["spared"]) == (len(wanted), len(below) - len(wanted)) and len(wanted) > 3
    assert path.read_bytes().count(b"\n") == 1, "counting does nothing"
    with pytest.raises(UserError, match="count again"):
        view.answer_apply("another")
    assert view.answer_apply(told["plan"], "A", "too soft")["count"] == len(wanted)
    assert np.flatnonzero(collection.state == 2).tolist() == wanted.tolist()
    assert collection.decisions.get(collection.ids[wanted[0]])["why"] == "sharpness < 20; too soft"
    with pytest.raises(UserError, match="count again"):
        view.answer_apply(told["plan"])
    assert view.answer_undo()["count"] == len(wanted) and not (collection.state == 2).any()
    assert view.answer_count(**asked, decision="accept", again=True)["spared"] == 0
    with pytest.raises(UserError, match="no comparison"):
        view.answer_count(**asked | {"comparison": "; import os"}, decision="reject")


def test_two_galleries_on_one_file_see_each_other_and_undo_only_their_own(images, scores, collection, path):
    other = Collection(images, scores, Decisions(path), RULES)
    collection.decide([1, 2], "reject", "A")
    other.decide([2], "accept", "B")
    assert other.state[[1, 2]].tolist() == [2, 1]
    assert Gallery(collection).answer_hello()["progress"] == other.progress().tolist()
    assert collection.undo() == 1, "what B has decided since then is B's"
    other.refresh()
    assert other.state[[1, 2]].tolist() == [0, 1]


def test_a_restarted_gallery_knows_what_the_file_knows(images, scores, collection, path):
    collection.decide(range(9), "reject", "A", "blurred", "v2")
    with open(path, "ab") as file:
        file.write(b'{"image_id": "i50", "decision": "acc')  # the kernel died here
    again = Collection(images, scores, Decisions(path), RULES)
    assert (again.state == collection.state).all() and again.progress().sum(axis=0).tolist() == [51, 0, 9]
    assert again.decisions.notes == [f"{path.name}, line 10 is half written and was not read"]
    again.decide([50], "accept")
    assert Collection(images, scores, Decisions(path)).state[50] == 1
    assert again.facts(4)["decision"]["rubric"] == "v2" and again.steps == 1


def test_lines_that_another_process_is_still_writing_are_read_when_they_are_whole(path):
    decisions, line = Decisions(path), b'{"image_id": "i\xc3\xb6", "decision": "reject"}\n'
    decisions.add("a", "accept")
    for end in range(1, len(line) + 1):
        with open(path, "ab") as file:
            file.write(line[end - 1 : end])
        decisions.refresh()
    assert [row["image_id"] for row in decisions.rows()] == ["a", "iö"] and decisions.notes == []
    path.unlink()
    Decisions(path).add("b", "reject")
    assert decisions.refresh() and [row["image_id"] for row in decisions.rows()] == ["b"], "another file, read anew"


def test_a_withdrawn_decision_is_none_wherever_decisions_are_read(scores, path):
    decisions, ids = Decisions(path), scores["image_id"].tolist()
    decisions.add_many(ids[:3], "reject", "A", "blurred")
    decisions.add_many([ids[1], "of another set"], "withdrawn")
    again = Decisions(path)
    assert [row["image_id"] for row in again.rows()] == sorted([ids[0], ids[2]])
    found = curation.decided(scores, {}, again)
    assert found.loc[~found["keep"], "reason"].tolist() == ["by hand: blurred"] * 2
    with pytest.raises(UserError, match="'maybe' of 'y'"):
        decisions.append([{"image_id": "x", "decision": "accept"}, {"image_id": "y", "decision": "maybe"}])
    assert path.read_bytes().count(b"\n") == 5, "all or nothing"


def test_acknowledged_decisions_survive_a_kill(tmp_path):
    """Five thousand at once, then one: killed right after it was told that they are on the disk."""
    program = (
        "import sys; from cilkit.synthesis.decisions import Decisions\n"
        "decisions = Decisions(sys.argv[1])\n"
        "decisions.add_many([f'i{k}' for k in range(5000)], 'reject', 'A', 'sharpness < 3')\n"
        "decisions.add('i7', 'accept')\n"
        "print('done', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "d.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        os.kill(process.pid, signal.SIGKILL)
    found = Decisions(tmp_path / "d.jsonl")
    assert len(found) == 5000 and found.notes == [] and found.get("i7")["decision"] == "accept"
    assert sum(row["decision"] == "reject" for row in found.rows()) == 4999


def test_processes_that_append_at_once_mix_no_lines(tmp_path):
    program = (
        "import sys; from cilkit.synthesis.decisions import Decisions\n"
        "decisions = Decisions(sys.argv[1])\n"
        "for k in range(20): decisions.add_many([f'{sys.argv[2]}-{k}-{n}' for n in range(50)], 'reject', 'x' * 99)\n"
    )
    path = tmp_path / "d.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert len(Decisions(path)) == 2000 and Decisions(path).notes == []


def test_zoom_tells_the_row_of_the_manifest_and_shows_the_file_itself(tmp_path):
    writing = ShardWriter(tmp_path / "set", shard_size=4)
    pixels = tiny.image_set(2, 5).images()
    for n, image in enumerate(pixels):
        row = {"image_id": f"i{n}", "class_id": n % 2, "class_name": f"c{n % 2}"}
        writing.add(image, {**row, "prompt": f"{MARKUP} {n}", "seed": 2**60 + n})
    writing.close()
    view = Gallery(Collection(open_set(tmp_path / "set").select([8, 3, 5])))
    told, (picture,) = view.answer_zoom(1)
    assert told["manifest"]["prompt"] == f"{MARKUP} 3" and told["image_id"] == "i3" and told["state"] == "undecided"
    assert told["manifest"]["seed"] == str(2**60 + 3), "a number that JavaScript would round"
    assert (np.asarray(Image.open(io.BytesIO(picture))) == pixels[3]).all()
    assert manifest_row(view.collection.images, 2)["image_id"] == "i5"
    with pytest.raises(UserError, match="not in the gallery"):
        view.answer_zoom(3)


def test_thumbnails_of_one_page_do_not_decode_the_set(tmp_path, monkeypatch):
    writing = ShardWriter(tmp_path / "set", shard_size=8)
    random = np.random.default_rng(0)
    for n in range(20):
        image = random.integers(0, 256, (40, 120 if n == 9 else 40, 3), dtype=np.uint8)
        writing.add(image, {"image_id": f"i{n}", "class_id": 0, "class_name": "c"})
    writing.close()
    rows = [(f"i{n}", bytes([n])) for n in range(8, 16)]
    pd.DataFrame(rows, columns=["image_id", "jpeg"]).to_parquet(tmp_path / "set" / "00001.thumbs.parquet")
    images = open_set(tmp_path / "set")
    monkeypatch.setattr(type(images.source), "read", lambda *_: pytest.fail("read"))
    found = writer.Thumbs(images.select([19, 9, 15, 2])).encoded([1, 0, 3, 2])
    assert (found[0], found[3]) == (b"\x09", b"\x0f"), "painted ones as they are"
    assert found[1] == images.source.encoded(19) and Image.open(io.BytesIO(found[2])).size == (40, 40)
    (tmp_path / "set" / "00001.thumbs.parquet").unlink()
    assert Image.open(io.BytesIO(writer.Thumbs(images).encoded([9])[0])).size == (64, 21)


def test_the_sheet_is_small_whatever_it_shows():
    """60 pictures of noise, which compress least."""
    random = np.random.default_rng(0)
    noise = [writer.encode_webp(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(60)]
    tiles = [sheets.Tile(picture, MARKUP, STATES[k % 3]) for k, picture in enumerate(noise)]
    png = sheets.sheet(tiles, "A title of many words " * 12)
    assert len(png) <= sheets.LIMIT and Image.open(io.BytesIO(png)).size[0] == 10 * sheets.TILE


def test_one_output_holds_the_picture_its_words_and_no_markup(collection):
    collection.decide([0], "reject")
    view = Gallery(collection, query=Query(class_name=MARKUP))
    data, metadata = view._repr_mimebundle_()
    assert data["image/png"][:4] == b"\x89PNG" and "text/html" not in data
    alt = metadata["image/png"]["alt"]
    assert alt == data["text/plain"] and MARKUP in alt and "1 of 60 decided: 0 accepted, 1 rejected" in alt
    empty = Gallery(collection, query=Query(decision="accepted"))
    assert "0 of 0 images" in empty.words() and Image.open(io.BytesIO(empty.still())).size[0] > 200


def test_the_site_shows_the_picture_with_its_words_as_text(collection, tmp_path):
    import base64

    import nbformat

    from cilkit.workbook.fragments import fragment

    data, metadata = Gallery(collection, query=Query(class_name=MARKUP))._repr_mimebundle_()
    data |= {"image/png": base64.b64encode(data["image/png"]).decode()}
    data |= {"application/vnd.jupyter.widget-view+json": {"model_id": "x", "version_major": 2, "version_minor": 1}}
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    page = fragment(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("view", outputs=[output])]), tmp_path, "p", {}, {}
    ).body
    assert 'alt="Gallery. 20 of 20 images (&lt;img src=x onerror=alert(1)&gt; $x$ &amp; “b”)' in page.replace(
        "&#34;", '"'
    )
    assert page.count("<img") == 1 and "model_id" not in page


def test_nearest_real_images_are_the_nearest_by_all_distances():
    real, painted = tiny.image_set(3, 20), tiny.image_set(3, 2, seed=1).images()
    places, distances = Neighbours(real).nearest(painted, 4)
    found = Neighbours(real)
    theirs, mine = found._placed(real.images()), found._placed(painted)
    every = np.linalg.norm(mine[:, None] - theirs, axis=2)
    assert (places == every.argsort(axis=1, kind="stable")[:, :4]).all() and (np.diff(distances) >= 0).all()
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :4], atol=1e-4)
    assert Neighbours(real).nearest(real.images([5]), 1)[0].tolist() == [[5]], "an image is its own neighbour"
    assert (real.labels[places[:, 0]] == tiny.image_set(3, 2, seed=1).labels).all()
    few = Neighbours(real, tiny.backbone(), most=7)
    assert (len(few.others), few.all) == (7, 60) and few.nearest(few.others.images([2]), 1)[1][0, 0] < 1e-6


def test_the_verb_looks_only_without_a_file_and_names_what_is_wrong(images, scores, tmp_path, capsys, monkeypatch):
    from cilkit.road.curating import curate  # noqa: F401  (the road is there before the working directory changes)

    view = cilkit.gallery(images, scores, rules=RULES, benchmark=images)
    assert "to look only" in capsys.readouterr().out and view.query.sort == SUSPECT
    with pytest.raises(UserError, match="to look only"):
        view.answer_decide([1], "reject")
    told, pictures = view.answer_real(5)
    assert told["searched"] == 60 and told["found"][0]["image_id"] == "i05" and len(pictures) == 6
    view = cilkit.gallery(images, decisions=str(tmp_path / "d.jsonl"), reviewer="A", page=10)
    assert "begun with the first decision" in capsys.readouterr().out and not (tmp_path / "d.jsonl").exists()
    assert view.answer_hello()["verdicts"] == [] and view.answer_decide([4], "reject", "A", MARKUP)["count"] == 1
    line = json.loads((tmp_path / "d.jsonl").read_text())
    assert (line["image_id"], line["by"], line["why"]) == ("i04", "A", MARKUP)
    for wrong, message in (
        ({"page": 0}, "page is 0"),
        ({"sort": "sharpnes", "scores": scores}, "did you mean 'sharpness'"),
        ({"scores": 3}, "scores are int"),
        ({"scores": scores[["image_id"]], "rules": RULES}, "needs a column 'sharpness'"),
        ({"decisions": str(tmp_path)}, "is no file"),
        ({"reasons": "blurred"}, "give a list"),
    ):
        with pytest.raises(UserError, match=message):
            cilkit.gallery(images, **wrong)


def test_an_error_is_told_in_the_view(collection):
    view, sent = Gallery(collection), []
    view.send = lambda content, buffers=None: sent.append(content)
    view._heard(None, {"kind": "page", "id": "7", "query": {"sort": "beauty"}}, [])
    view._heard(None, {"kind": "page", "id": "8", "query": {"__class__": "x"}}, [])
    assert sent[0]["id"] == "7" and "there is no order 'beauty'" in sent[0]["error"]
    assert "no query of this gallery" in sent[1]["error"]


def test_no_view_makes_elements_out_of_text():
    files = sorted(base.HERE.glob("*.js"))
    assert {"common.js", "gallery.js"} <= {file.name for file in files}
    for file in files:
        code = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", code), (
            file
        )
        assert not re.search(r"https?://|import\(|^import ", code, re.MULTILINE), f"{file} asks another place"
