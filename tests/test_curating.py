"""Curated sets on the road: an artifact of choices without pixels, opened like a painted set, read by pre-training."""

import json

import numpy as np
import pandas as pd
import pytest

import cilkit
from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road import inputs
from cilkit.road.curating import curate, score
from cilkit.synthesis.curation import Decisions

TINY = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}
RULES = {"sharpness": ">=20"}


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield


def painted(seed: int):
    return cilkit.paint(
        cilkit.foresee("handwritten characters", classes=4), "font-renderings", per_class=8, workers=1, seed=seed
    )


@pytest.fixture(scope="module")
def images():
    return painted(0)


@pytest.fixture(scope="module")
def curated(images):
    return curate(images, RULES, benchmarks=["digits_photo"])


def test_what_is_kept_is_opened_with_the_pixels_of_the_base(images, curated):
    table = pd.read_parquet(curated.artifact.file("keep.parquet"))
    assert (
        table.columns.tolist() == ["image_id", "keep", "reason"] and table["image_id"].tolist() == images.ids.tolist()
    )
    keep = table["keep"].to_numpy()
    assert 0 < keep.sum() < len(images) and set(table["reason"]) == {"", "sharpness not >=20"}
    assert curated.ids.tolist() == images.ids[keep].tolist() and curated.class_names == images.class_names
    assert (curated.images() == images.images()[keep]).all()
    assert sum(file["bytes"] for file in curated.artifact.files) < 20_000, "choices, no pixels"


def test_it_is_found_again_by_name_and_opened_as_any_image_set(images, curated):
    assert curate(images, RULES, benchmarks=["digits_photo"]).artifact.path == curated.artifact.path
    again = inputs.upstream(curated.artifact.name, "images")
    assert again.ids.tolist() == curated.ids.tolist() and again.artifact.digest == curated.artifact.digest
    assert inputs.input_of(curated.artifact, "realm").name == "handwritten characters"


def test_equal_choices_from_other_pixels_are_another_set(images):
    first, other = curate(images, {}), curate(painted(1), {})
    assert first.ids.tolist() == other.ids.tolist() and len(first) == len(images)
    assert first.artifact.digest != other.artifact.digest


def test_decisions_are_part_of_what_is_made_and_their_dates_are_not(images, tmp_path):
    path, ids = tmp_path / "decisions.jsonl", images.ids
    Decisions(path).add(ids[3], "reject", "A. Reader", "two of them")
    one = curate(images, {}, decisions=str(path))
    assert set(ids) - set(one.ids) == {ids[3]}
    line = json.loads(path.read_text()) | {"when": "2001-01-01"}
    path.write_text(json.dumps(line) + "\n")
    assert curate(images, {}, decisions=str(path)).artifact.path == one.artifact.path
    Decisions(path).add(ids[3], "accept")
    assert len(curate(images, {}, decisions=str(path))) == len(images)
    kept = json.loads(one.artifact.file("decisions.json").read_text())
    assert kept == [{"image_id": ids[3], "decision": "reject", "by": "A. Reader", "why": "two of them"}]


def test_a_line_that_was_not_read_is_told(images, tmp_path, capsys):
    path = tmp_path / "decisions.jsonl"
    path.write_text('{"image_id": "half')
    assert len(curate(images, {}, decisions=str(path))) == len(images)
    assert "decisions.jsonl, line 1 is half written" in capsys.readouterr().out


def test_a_missing_file_of_decisions_is_no_empty_one(images, tmp_path):
    with pytest.raises(UserError, match="no file of decisions"):
        curate(images, {}, decisions=str(tmp_path / "none.jsonl"))


def test_a_curated_set_can_be_curated(images, curated):
    again = curate(curated, {"contrast": ">=150"})
    assert set(again.ids) <= set(curated.ids)
    assert again.artifact.inputs["images"]["digest"] == curated.artifact.digest
    again = inputs.upstream(again.artifact.name, "images")
    assert (again.images() == images.images()[np.isin(images.ids, again.ids)]).all()


def test_a_class_without_images_left_is_left_out_and_none_left_is_refused(images, tmp_path):
    decisions = Decisions(tmp_path / "d.jsonl")
    for image_id in images.ids[images.labels == 1]:
        decisions.add(image_id, "reject")
    fewer = curate(images, {}, decisions=str(decisions.path))
    assert fewer.class_names == [images.class_names[k] for k in (0, 2, 3)] and set(fewer.labels) == {0, 1, 2}
    with pytest.raises(UserError, match="nothing would be left"):
        curate(images, {"contrast": ">300"})


def test_the_card_tells_the_base_the_rules_and_the_overlap(images, curated):
    card = json.loads(curated.artifact.file("card.json").read_text())
    assert card["images"] == len(curated) and card["rules"] == RULES
    assert card["rejected"] == {"sharpness not >=20": len(images) - len(curated)}
    assert card["generator"]["id"] == "font-renderings" and card["chosen_from"] == images.artifact.digest
    assert card["overlaps"]["digits_photo"]["concepts"] == images.class_names
    assert "were left out" in curated.artifact.file("README.md").read_text()


def test_scores_are_made_once_for_all_rules(images, monkeypatch):
    from cilkit.synthesis import curation

    first = score(images)
    monkeypatch.setattr(curation, "scores", lambda *_: pytest.fail("scored again"))
    assert score(images).path == first.path
    assert len(curate(images, {"contrast": ">=120"})) < len(images)
    table = pd.read_parquet(first.file("scores.parquet"))
    assert table["image_id"].tolist() == images.ids.tolist() and table["agreement"].isna().all()


def test_without_rules_nothing_is_scored_and_with_them_only_what_they_need(images, monkeypatch):
    from cilkit.synthesis import curation

    def scores(images, backbone, *_):
        assert backbone is None, "nobody judges agreement where no rule asks for it"
        return look(images)

    look = curation.scores
    monkeypatch.setattr(curation, "scores", lambda *_: pytest.fail("scored"))
    everything = curate(painted(3), {})
    assert len(everything) == len(images) and set(everything.artifact.inputs) == {"images", "realm"}
    monkeypatch.setattr(curation, "scores", scores)
    assert len(curate(painted(3), {"blank": False}, backbone="resnet50.a1_in1k")) <= len(images)


def test_a_part_can_be_scored_for_a_look(images):
    whole, some = (pd.read_parquet(score(images, most=most).file("scores.parquet")) for most in (0, 10))
    assert some.groupby("class_name").size().tolist() == [3] * 4  # ten or a few more
    firsts = [np.flatnonzero(images.labels == label)[:3] for label in range(4)]
    assert some["image_id"].tolist() == images.ids[np.sort(np.concatenate(firsts))].tolist()
    part = whole[whole["image_id"].isin(some["image_id"])]
    assert part["sharpness"].tolist() == some["sharpness"].tolist()
    assert score(images, most=len(images)).path == score(images).path


def test_a_hub_model_that_judges_is_named_with_its_commit(monkeypatch, tmp_path):
    import huggingface_hub

    from cilkit.road import curating

    asked = []

    def download(name, file, revision):
        if name == "owner/none":
            raise OSError("offline")
        asked.append((name, file, revision))
        return f"{tmp_path}/models--owner--clip/snapshots/0123abcd/{file}"

    def cached(name, file, revision):
        return f"{tmp_path}/snapshots/cafe/{file}" if (name, revision) == ("owner/here", None) else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert curating._pinned("owner/here") == "owner/here@cafe" and not asked, "no network for what lies here"
    assert curating._pinned("owner/clip") == "owner/clip@0123abcd" == curating._identity_of("owner/clip@0123abcd")
    assert curating._pinned("owner/clip@main") == "owner/clip@0123abcd"
    assert asked == [("owner/clip", "config.json", None), ("owner/clip", "config.json", "main")]
    with pytest.raises(UserError, match="'owner/none' is neither a folder nor to be had"):
        curating._pinned("owner/none")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{}")
    folder = str(tmp_path / "clip")
    before = curating._identity_of(folder)
    assert curating._pinned(folder) == folder and folder not in before
    (tmp_path / "clip" / "config.json").write_text("{ }")
    assert curating._identity_of(folder) != before


def test_a_backbone_judges_and_pretraining_reads_what_is_kept(images, curated):
    backbone = cilkit.pretrain(curated, **TINY, epochs=1, batch_size=8)
    assert backbone.artifact.inputs["images"]["digest"] == curated.artifact.digest
    assert backbone.report["images"] == len(curated)
    judged = curate(images, {"agreement": ">0"}, backbone=backbone)
    table = pd.read_parquet(score(images, backbone).file("scores.parquet"))
    assert set(judged.ids) == set(table.loc[table["agreement"] > 0, "image_id"]) and len(judged) < len(images)
    assert score(images, backbone).inputs["backbone"]["digest"] == backbone.artifact.digest


def test_agreement_without_a_judge_and_bad_rules_are_refused_before_anything_is_scored(images):
    before = len(list(artifacts.all_artifacts("scores")))
    with pytest.raises(UserError, match="give a backbone or text_image"):
        curate(images, {"agreement": ">0"})
    with pytest.raises(UserError, match="rule 'blurry' is unknown"):
        curate(images, {"blurry": True})
    assert len(list(artifacts.all_artifacts("scores"))) == before


def test_a_base_that_is_gone_is_named(images):
    lost = curate(painted(2), {})
    base = artifacts.find(**{key: lost.artifact.inputs["images"][key] for key in ("stage", "key", "digest")})
    base.path.rename(base.path.with_name("elsewhere"))
    with pytest.raises(UserError, match="made from a images that is no longer"):
        inputs.upstream(lost.artifact, "images")


def test_a_painted_artifact_loses_its_manifest_and_is_whole_again(images):
    from cilkit.data.repair import examine, rebuild

    assert examine(images.artifact.path) == []
    (images.artifact.path / "manifest.parquet").unlink()
    rebuild(images.artifact.path)
    assert examine(images.artifact.path) == [] and artifacts.verify(images.artifact) == []
