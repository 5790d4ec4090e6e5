"""Curation: scores against literal references, one reason an image, decisions that survive a crash and overrule."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny

from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError
from cilkit.synthesis import curation, glyphs, inspection
from cilkit.synthesis.curation import Decisions, decided, rejected_by


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """40 images of each of three glyphs; 3 is blank, 9, 12 and 30 are nearly 7, 50 is 7 under another label."""
    pixels, labels = glyphs.render_set(["digit one", "digit eight", "heart"], 40, seed=0)
    noise = np.random.default_rng(0).integers(-4, 5, pixels[7].shape)
    pixels[3], pixels[9] = 90, np.clip(pixels[7].astype(int) + noise, 0, 255)
    pixels[12] = pixels[30] = pixels[50] = pixels[7]
    return ImageSet.from_arrays(pixels, labels, ["digit one", "digit eight", "heart"])


@pytest.fixture(scope="module")
def table(images) -> pd.DataFrame:
    return curation.scores(images)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of random weights in the real format; its tokenizer knows characters only."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = len(words) - 1
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 40, "eos_token_id": end, "pad_token_id": end}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8})
        CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def test_scores_are_what_inspection_says_of_each_image(images, table):
    pixels = images.images()
    assert table["image_id"].tolist() == images.ids.tolist()
    assert table["class_name"].tolist() == ["digit one"] * 40 + ["digit eight"] * 40 + ["heart"] * 40
    np.testing.assert_array_equal(table["contrast"], inspection.contrasts(pixels))
    np.testing.assert_array_equal(table["sharpness"], inspection.sharpness(pixels))
    assert table.index[table["blank"]].tolist() == [3] and table["agreement"].isna().all()


def test_clusters_gather_an_image_with_its_twins(table):
    assert table.index[table["cluster"] >= 0].tolist() == [7, 9, 12, 30]
    assert set(table["cluster"]) == {-1, 0} and set(table["duplicate_of"][[9, 12, 30]]) == {table["image_id"][7]}


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_do_not_depend_on_threads_or_how_many_images_are_held_at_once(images, table, monkeypatch, threads):
    monkeypatch.setattr(curation, "PIXELS", 3 * 32 * 32)
    monkeypatch.setattr(curation, "THREADS", threads)
    pd.testing.assert_frame_equal(curation.scores(images), table)


def test_a_bounded_number_of_images_is_in_memory(images, monkeypatch):
    monkeypatch.setattr(curation, "PIXELS", 32 * 32)
    monkeypatch.setattr(curation, "THREADS", 2)
    read, looked, most = [], [], []
    take, look = ImageSet.read, curation._seen
    monkeypatch.setattr(ImageSet, "read", lambda one, rows: (read.append(1), take(one, rows))[1])

    def seen(pixels):
        most.append(len(read) - len(looked))
        found = look(pixels)
        looked.append(1)
        return found

    monkeypatch.setattr(curation, "_seen", seen)
    curation.scores(images.of_classes([0]))
    assert len(looked) == 40 and len(read) == 41 and max(most) <= 3  # the first reading is of one image


def test_an_interrupted_scoring_goes_on_with_the_next_class(images, table, monkeypatch, tmp_path):
    look, seen = curation._of_a_class, []

    def once(members, tick):
        if len(seen) == 1:
            seen.append("interrupted")
            raise KeyboardInterrupt
        seen.append(members.class_names[members.labels[0]])
        return look(members, tick)

    monkeypatch.setattr(curation, "_of_a_class", once)
    with pytest.raises(KeyboardInterrupt):
        curation.scores(images, scratch=tmp_path)
    pd.testing.assert_frame_equal(curation.scores(images, scratch=tmp_path), table)
    assert seen == ["digit one", "interrupted", "digit eight", "heart"]


def test_a_class_without_images_has_no_scores(images, table):
    found = curation.scores(images.of_classes([0, 2]))
    pd.testing.assert_frame_equal(found, table[table["class_name"] != "digit eight"].reset_index(drop=True))


def test_images_of_other_sizes_are_scored_and_never_twins(tmp_path):
    from cilkit.data.shards import ShardWriter, open_set

    writer = ShardWriter(tmp_path)
    small = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    for n, image in enumerate([small, np.kron(small, np.ones((2, 2, 1), np.uint8)), small]):
        writer.add(image, {"image_id": f"i{n}", "class_id": 0, "class_name": "noise"})
    writer.close()
    assert curation.scores(open_set(tmp_path))["duplicate_of"].tolist() == ["", "", "i0"]


def test_agreement_is_the_margin_of_the_nearest_class_mean_left_one_out():
    """Against the definition, image by image."""
    from cilkit import backbones

    images, network = tiny.image_set(classes=3, per_class=5), tiny.backbone()
    features = backbones.extract(network, images, "statistics").astype(float)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    wanted = []
    for i, label in enumerate(images.labels):
        cosine = {}
        for other in range(3):
            members = [j for j in range(15) if images.labels[j] == other and j != i]
            mean = features[members].mean(axis=0)
            cosine[other] = features[i] @ mean / np.linalg.norm(mean)
        wanted.append(cosine[label] - max(value for other, value in cosine.items() if other != label))
    np.testing.assert_allclose(curation.scores(images, network)["agreement"], wanted, atol=1e-5)


def test_agreement_of_a_lone_image_and_of_a_lone_class_is_not_judged():
    images, network = tiny.image_set(classes=2, per_class=3), tiny.backbone()
    alone = images.select([*np.flatnonzero(images.labels == 0), np.flatnonzero(images.labels == 1)[0]])
    assert np.isnan(curation.agreement_with_means(alone, network)).tolist() == [False, False, False, True]
    assert np.isnan(curation.agreement_with_means(images.of_classes([0]), network)).all()


def test_a_backbone_with_an_input_size_sees_resized_images():
    images, network = tiny.image_set(classes=2, per_class=3), tiny.transformer()
    larger = ImageSet.from_arrays(
        images.images().repeat(3, axis=1).repeat(3, axis=2), images.labels, images.class_names
    )
    assert network.input.size == 16
    assert np.isfinite(curation.agreement_with_means(larger, network)).all()


def test_agreement_with_text_is_the_cosine_that_clip_gives(clip):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    images = tiny.image_set(classes=3, per_class=2)
    found = curation.scores(images, text_image=str(clip))["agreement"]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for at in (0, 3, 5):
        text = f"a photo of {images.class_names[images.labels[at]]}"
        with torch.no_grad():
            given = processor(text=[text], images=[images.images()[at]], return_tensors="pt")
            logit = model(**given).logits_per_image.item() / model.logit_scale.exp().item()
        assert found[at] == pytest.approx(logit, abs=1e-5)


def test_no_class_name_is_cut_for_clip_and_other_models_are_refused(clip, tmp_path):
    images = tiny.image_set(classes=2, per_class=2, prefix="x" * 60)
    with pytest.raises(UserError, match="reads 40; shorten it"):
        curation.scores(images, text_image=str(clip))
    with pytest.raises(UserError, match="can be loaded"):
        curation.scores(images, text_image=str(tmp_path))
    shutil.copytree(clip, tmp_path / "blind", ignore=shutil.ignore_patterns("processor_config.json"))
    with pytest.raises(UserError, match="is no CLIP that can be loaded"):
        curation.scores(tiny.image_set(classes=2, per_class=2), text_image=str(tmp_path / "blind"))
    with pytest.raises(UserError, match="give one of them"):
        curation.scores(images, tiny.backbone(), str(clip))


def by_hand(scores, tmp_path, *rows) -> Decisions:
    decisions = Decisions(tmp_path / "d.jsonl")
    for at, decision, why in rows:
        decisions.add(scores["image_id"][at], decision, "A. Reader", why)
    return Decisions(tmp_path / "d.jsonl")


def test_without_rules_nothing_is_left_out_and_the_default_leaves_out_blanks_and_repetitions(table):
    assert decided(table, {})["keep"].all() and decided(table[["image_id"]], {})["keep"].all()
    default = decided(table)
    assert default.index[~default["keep"]].tolist() == [3, 9, 12, 30]
    assert default["reason"][[3, 7, 9]].tolist() == ["blank", "", "duplicates"]


def test_each_rejected_image_has_the_first_reason_whatever_the_order_of_the_rules(table):
    scores = table.iloc[:6].assign(
        blank=[True, True, False, False, False, False],
        sharpness=[1.0, 9.0, 1.0, 3.0, 9.0, 9.0],
        agreement=[0.0, 0.0, 0.0, 0.5, 0.1, np.nan],
    )
    rules = {"agreement": ">=0.2", "sharpness": ">=3", "blank": False}
    found = decided(scores, rules)
    assert found["reason"].tolist() == ["blank", "blank", "sharpness not >=3", "", "agreement not >=0.2", ""]
    assert found["keep"].tolist() == [False, False, False, True, False, True]
    assert decided(scores, dict(reversed(rules.items()))).equals(found)
    assert rejected_by(found) == {"agreement not >=0.2": 1, "blank": 2, "sharpness not >=3": 1}
    for rule, kept in ((">3", 3), ("<= 3", 3), (" < 3.0 ", 2)):
        assert decided(scores, {"sharpness": rule})["keep"].sum() == kept


def test_of_duplicates_the_first_or_the_sharpest_that_passes_the_rest(table):
    kept = lambda scores, rules: [at for at in (7, 9, 12, 30) if decided(scores, rules)["keep"][at]]  # noqa: E731
    sharper = table.assign(sharpness=table["sharpness"].where(table.index != 12, 1000.0))
    assert kept(sharper, {"duplicates": "first"}) == [7] and kept(sharper, {"duplicates": "sharpest"}) == [12]
    assert kept(sharper, {"duplicates": "all"}) == [7, 9, 12, 30]
    blank = table.assign(blank=table.index == 7)
    assert kept(blank, {"blank": False, "duplicates": "first"}) == [9], "a blank first one does not cost its twins"


def test_decisions_overrule_rules_and_stand_for_their_cluster(table, tmp_path):
    rules = {"blank": False, "duplicates": "first"}
    rows = [(3, "accept", ""), (12, "accept", ""), (20, "reject", "two: of\nthem | <b>")]
    found = decided(table, rules, by_hand(table, tmp_path, *rows))
    assert found["keep"][[3, 12]].all() and not found["keep"][[7, 9, 30, 20]].any()
    assert found["reason"][20] == "by hand: two: of\nthem | <b>" and found["reason"][3] == "by hand"
    assert rejected_by(found) == {"by hand": 1, "duplicates": 3}
    rejected = decided(table, rules, by_hand(table, tmp_path, (12, "reject", ""), (7, "reject", "")))
    assert rejected["keep"][[7, 9, 12, 30]].tolist() == [False, True, False, False], "the next one takes its place"


def test_the_last_decision_counts_and_lines_are_only_appended(table, tmp_path):
    decisions = by_hand(table, tmp_path, (1, "reject", "blurred"), (2, "reject", ""), (1, "accept", ""))
    lines = [json.loads(line) for line in decisions.path.read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["reject", "reject", "accept"]
    assert all(set(line) == {"image_id", "decision", "by", "why", "when"} and line["when"] for line in lines)
    assert len(decisions) == 2 and [row["decision"] for row in decisions.rows()] == ["accept", "reject"]
    assert all("when" not in row for row in decisions.rows()), "dates are no part of what is decided"


@pytest.mark.parametrize("cut", [1, 5, 20, 60, 95])
def test_a_line_that_a_crash_cut_is_noted_and_the_rest_counts(table, tmp_path, cut):
    path = by_hand(table, tmp_path, (1, "reject", "ö" * 20), (2, "reject", "ö" * 20)).path
    path.write_bytes(path.read_bytes()[:-cut])
    decisions = Decisions(path)
    whole = cut == 1  # only the end of the line is missing
    assert len(decisions) == 1 + whole and len(decisions.notes) == 1 - whole
    decisions.add(table["image_id"][5], "accept")
    again = Decisions(path)
    assert len(again) == 2 + whole and again.notes == decisions.notes


def test_broken_lines_and_unknown_images_are_named(table, tmp_path):
    path = tmp_path / "d.jsonl"
    with pytest.raises(UserError, match="decision 'maybe' of 'x' is not accept or reject"):
        Decisions(path).add("x", "maybe")
    assert not path.exists()
    for line, message in (
        ('{"image_id": "a", "decision": "perhaps"}', "line 2: decision 'perhaps'"),
        ("[1]", "line 2: .* is no decision"),
        ('{"image_id": 7, "decision": "accept"}', "line 2: .* is no decision"),
        ('{"image_id": "a" "decision"}', "line 2: .* is no decision"),
    ):
        path.write_text(f'{{"image_id": "a", "decision": "accept"}}\n{line}\n')
        with pytest.raises(UserError, match=message):
            Decisions(path)
    path.write_text('\ufeff{"image_id": "00000", "decision": "accept"}\r\n', encoding="utf-8")
    with pytest.raises(UserError, match="'00000', which the image set does not hold"):
        decided(table, {}, Decisions(path))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"sharpnes": ">=3"}, "did you mean 'sharpness'"),
        ({"sharpness": 3}, "rule sharpness is 3; expected a comparison"),
        ({"contrast": ">=__import__('os')"}, "expected a comparison"),
        ({"blank": "no"}, "expected true or false"),
        ({"duplicates": "last"}, "expected one of first, sharpest, all"),
    ],
)
def test_rules_that_mean_nothing_are_refused(table, rules, message):
    with pytest.raises(UserError, match=message):
        decided(table, rules)


def test_an_empty_file_of_decisions_is_no_decision(table, tmp_path):
    (tmp_path / "d.jsonl").write_text("\n\r\n \n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decided(table, {}, Decisions(tmp_path / "d.jsonl"))["keep"].all()
    assert Decisions(tmp_path / "d.jsonl").notes == []


def test_nothing_left_out_is_counted_as_nothing():
    kept = pd.DataFrame({"image_id": ["a", "b"], "keep": [True, True], "reason": ["", ""]})
    assert rejected_by(kept) == {}
