"""The plan: everything that decides an image is fixed before the first is painted."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cilkit.artifacts import canonical, sha256_of
from cilkit.errors import UserError
from cilkit.realms import Realm, foresee
from cilkit.realms.parsing import Row
from cilkit.synthesis import load_generator, make_plan, plan_hash
from cilkit.synthesis.plan import COLUMNS, batches_per_shard, image_seed, open_plan, save_plan, write_plan


@pytest.fixture(scope="module")
def realm() -> Realm:
    return foresee("handwritten characters")[0]


def test_rows_are_classes_in_order_cut_into_full_batches(realm):
    plan = make_plan(realm, 5, seed=0, batch_size=4)
    assert tuple(plan.columns) == COLUMNS and len(plan) == 5 * 47
    assert plan["class_name"].tolist() == [name for name in realm.concept_names for _ in range(5)]
    assert plan["class_id"].tolist() == [label for label in range(47) for _ in range(5)]
    assert plan["image_id"].is_unique and plan["seed"].is_unique
    assert (plan["batch_id"] * 4 + plan["position"]).tolist() == list(range(len(plan)))
    assert plan["prompt"].iloc[0] == realm.concepts[0].prompt


def test_seeds_depend_on_seed_class_and_index_alone(realm):
    """A check value: the same on every machine; a larger plan, or one of fewer classes, keeps the images."""
    assert image_seed(0, "digit zero", 0) == 3328161243916922695
    assert all(0 <= image_seed(7, "heart", index) < 2**63 for index in range(50))
    small, large = make_plan(realm, 2, seed=3, batch_size=4), make_plan(realm, 4, seed=3, batch_size=32)
    both = small.merge(large, on="image_id")
    assert len(both) == len(small) and (both["seed_x"] == both["seed_y"]).all()
    rest = make_plan(realm.without(["digit zero"]), 2, seed=3, batch_size=4)
    both = small.merge(rest, on="image_id")
    assert len(both) == len(rest) and (both["seed_x"] == both["seed_y"]).all()
    assert not set(make_plan(realm, 2, seed=4, batch_size=4)["seed"]) & set(small["seed"])


def test_hash_names_the_plan(realm):
    plan = make_plan(realm, 2, seed=0, batch_size=4)
    assert plan_hash(plan) == plan_hash(make_plan(realm, 2, seed=0, batch_size=4))
    assert plan_hash(plan) == plan_hash(pd.DataFrame(plan.to_dict("records")))
    others = [make_plan(realm, 2, seed=1, batch_size=4), make_plan(realm, 2, seed=0, batch_size=5)]
    others.append(plan.assign(prompt=plan["prompt"].str.replace("photograph", "drawing")))
    assert len({plan_hash(other) for other in [plan, *others]}) == 4


def test_images_a_class_by_name_and_the_generator_s_batch_size(realm):
    few = realm.first(2)
    plan = make_plan(few, {"digit zero": 1, "digit one": 40}, seed=0, generator=load_generator("font-renderings"))
    assert plan["class_name"].value_counts().to_dict() == {"digit one": 40, "digit zero": 1}
    assert plan.groupby("batch_id").size().tolist() == [32, 9]


def test_a_class_without_images_is_named(realm):
    with pytest.raises(UserError, match="class 'digit zero' .* would have no images .*realm.without"):
        make_plan(realm, 0, seed=0)
    with pytest.raises(UserError, match="class 'digit one' .* would have no images"):
        make_plan(realm.first(2), {"digit zero": 3}, seed=0)
    with pytest.raises(UserError, match="no concepts, so there is nothing to paint"):
        make_plan(realm.without(realm.concept_names), 3, seed=0)
    with pytest.raises(UserError, match="batch size -1"):
        make_plan(realm, 1, seed=0, batch_size=-1)


def test_a_concept_that_the_generator_cannot_paint_stops_the_plan():
    birds = Realm.from_rows("birds", "object", [Row("ducks", "mallard", "Green head.")])
    with pytest.raises(UserError, match="'font-renderings' cannot paint 'mallard'.* name a Stable Diffusion"):
        make_plan(birds, 2, seed=0, generator=load_generator("font-renderings"))


class Reader:
    """A generator that reads prompts of so many words, begin and end counted; it paints nothing."""

    id, settings = "reader", {"batch_size": 4}

    def __init__(self, limit):
        self.limit = limit

    def tokens(self, prompts):
        return [len(prompt.split()) + 2 for prompt in prompts], self.limit

    def check(self, concepts, prompts=()):
        long = [prompt for prompt in prompts if self.limit and self.tokens([prompt])[0][0] > self.limit]
        if long:
            raise UserError(f"the prompt {long[0]!r} is too long")


def birds(*descriptions):
    return Realm.from_rows("birds", "object", [Row("all", f"bird {k}", text) for k, text in enumerate(descriptions)])


def whole(plan):
    return pd.concat([plan.rows(shard) for shard in range(plan.n_shards)], ignore_index=True)


def test_the_hash_is_of_all_rows_as_one_list(realm):
    plan = make_plan(realm, 2, seed=0, batch_size=4)
    rows = canonical(plan.to_numpy().tolist())
    assert plan_hash(plan) == hashlib.sha256(rows.encode()).hexdigest()
    assert plan_hash(plan)[:16] == "e25017520fe6a82e"  # as of the first plans: a study that is kept names it


@pytest.mark.parametrize(("style", "long_prompts"), [("paper", "refuse"), ("diversified", "shorten")])
def test_a_plan_on_the_disk_has_the_rows_of_one_in_memory(realm, tmp_path, style, long_prompts):
    given = {"seed": 3, "batch_size": 4, "style": style, "long_prompts": long_prompts}
    written = write_plan(tmp_path / "plan.parquet", realm, 5, shard_size=30, **given)
    plan = make_plan(realm, 5, **given)
    opened = open_plan(tmp_path / "plan.parquet")
    pd.testing.assert_frame_equal(whole(opened), plan)
    assert opened.hash == written.hash == plan_hash(plan) and len(opened) == len(plan)
    assert opened.classes == realm.concept_names and opened.batch_size == 4
    assert opened.n_shards == 9 and opened.shard_rows == [28] * 8 + [11]  # seven whole batches, of the 59
    saved = save_plan(tmp_path / "saved.parquet", plan, shard_size=30)
    assert sha256_of(saved.path) == sha256_of(written.path)


def test_a_batch_is_never_cut_and_shards_follow_from_the_number_of_images():
    for images in (1, 15, 240, 2_444, 50_000, 10_000_000):
        for batch_size in (1, 7, 32, 1500):
            size = batches_per_shard(images, batch_size) * batch_size
            assert batch_size <= size <= max(batch_size, 1000)
            assert -(-images // size) <= max(32, images / 500)
    assert batches_per_shard(2_444, 52) == 2 and batches_per_shard(10_000_000, 50) == 20
    assert batches_per_shard(63, 4, shard_size=10) == 2 and batches_per_shard(63, 40, shard_size=10) == 1


def test_a_part_of_a_plan_keeps_its_batches_and_further_columns(realm, tmp_path):
    plan = make_plan(realm.first(3), 8, seed=0, batch_size=4).assign(note="mine")
    part = plan[~plan["batch_id"].isin([1, 2])]
    saved = save_plan(tmp_path / "plan.parquet", part, shard_size=8)
    pd.testing.assert_frame_equal(whole(saved), part.reset_index(drop=True))
    assert saved.shard_rows == [4, 4, 8] and saved.classes == realm.concept_names[:3]
    with pytest.raises(UserError, match="the plan lacks the column 'seed'; expected image_id, class_id"):
        save_plan(tmp_path / "other.parquet", plan.drop(columns="seed"))
    with pytest.raises(UserError, match="the plan has no rows"):
        save_plan(tmp_path / "other.parquet", plan[:0])
    assert not (tmp_path / "other.parquet").exists()


def test_files_that_are_no_plan_are_named(realm, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.parquet does not exist; write it with write_plan"):
        open_plan(tmp_path / "nowhere.parquet")
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"half\.parquet is not readable Parquet"):
        open_plan(tmp_path / "half.parquet")
    make_plan(realm, 1, seed=0).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(UserError, match=r"bare\.parquet is no plan \(its hash is missing\)"):
        open_plan(tmp_path / "bare.parquet")
    plan = write_plan(tmp_path / "plan.parquet", realm, 1, seed=0)
    for shard in (-1, plan.n_shards):
        with pytest.raises(UserError, match=rf"shard {shard} is outside the {plan.n_shards} shards"):
            plan.rows(shard)


def test_the_style_changes_prompts_and_nothing_else(realm):
    paper, plain, varied = (make_plan(realm, 3, 0, 4, style=style) for style in ("paper", "plain", "diversified"))
    rest = [column for column in COLUMNS if column != "prompt"]
    pd.testing.assert_frame_equal(paper[rest], plain[rest])
    pd.testing.assert_frame_equal(paper[rest], varied[rest])
    assert set(plain["prompt"]) == {f"a photo of a {name}" for name in realm.concept_names}
    assert varied["prompt"].is_unique
    starts = [prompt.rstrip(". ") + ", " for prompt in paper["prompt"]]
    assert all(prompt.startswith(start) for prompt, start in zip(varied["prompt"], starts, strict=True))
    larger = make_plan(realm.without(["digit zero"]), 5, 0, 8, style="diversified").merge(varied, on="image_id")
    assert len(larger) == 3 * 46 and (larger["prompt_x"] == larger["prompt_y"]).all()  # as with the seeds
    own = make_plan(realm, 2, 0, 4, style=["in oil", "in ink"])
    assert own["prompt"].iloc[:2].str.rsplit(", ").str[-1].sort_values().tolist() == ["in ink", "in oil"]


def test_long_prompts_are_refused_or_shortened_and_listed(tmp_path):
    realm = birds("red breast, brown back, thin bill", "black", "long red legs, white below, grey above")
    with pytest.raises(UserError, match="prompt 'A photograph of bird 0: red breast, brown back, thin bill' is too"):
        make_plan(realm, 2, 0, generator=Reader(11))
    plan = write_plan(tmp_path / "a", realm, 2, 0, generator=Reader(11), long_prompts="shorten")
    prompts = whole(plan)["prompt"].unique().tolist()
    kept = ["bird 0: red breast, brown back", "bird 1: black", "bird 2: long red legs"]
    assert prompts == [f"A photograph of {text}" for text in kept]
    assert plan.shortened().to_dict("list") == {
        "class_name": ["bird 0", "bird 2"],
        "prompt": [prompts[0], prompts[2]],
        "shortened": ["thin bill", "white below, grey above"],
    }
    assert write_plan(tmp_path / "b", realm, 2, 0, generator=Reader(99), long_prompts="shorten").shortened().empty
    assert write_plan(tmp_path / "c", realm, 2, 0, generator=Reader(99)).shortened().empty
    with pytest.raises(UserError, match="'A photograph of bird 0' is too long"):  # one clause stays
        make_plan(realm, 2, 0, generator=Reader(6), long_prompts="shorten")
    with pytest.raises(UserError, match="long_prompts 'cut' is unknown; take 'refuse' or 'shorten'"):
        make_plan(realm, 2, 0, long_prompts="cut")


def test_shortened_prompts_keep_the_style_s_ending_whatever_it_is(tmp_path):
    realm = birds("red breast, brown back, thin bill", "black")
    plan = make_plan(realm, 500, 0, generator=Reader(22), style="diversified", long_prompts="shorten")
    assert plan["prompt"].is_unique and max(Reader(22).tokens(plan["prompt"])[0]) <= 22
    assert set(plan["shortened"]) == {"brown back, thin bill", ""}
    listed = save_plan(tmp_path / "plan.parquet", plan).shortened()
    assert listed["class_name"].tolist() == ["bird 0"] and listed["prompt"][0] == plan["prompt"][0]


def test_without_a_limit_prompts_are_shortened_to_the_300_characters_of_the_paper():
    clause = "a clause of 32 characters or so!"
    for generator in (None, Reader(0)):
        plan = make_plan(birds(", ".join([clause] * 12)), 1, 0, generator=generator, long_prompts="shorten")
        assert 300 - 34 < len(plan["prompt"][0]) <= 300
        assert f"{plan['prompt'][0]}, {plan['shortened'][0]}" == birds(", ".join([clause] * 12)).concepts[0].prompt


def test_shards_are_row_groups_without_statistics(realm, tmp_path):
    """10,000 shards of a large plan are a footer of a few megabytes."""
    plan = write_plan(tmp_path / "plan.parquet", realm, 5, 0, shard_size=32)
    group = pq.ParquetFile(plan.path).metadata.row_group(0)
    assert group.num_rows == 32 and not any(group.column(k).is_stats_set for k in range(group.num_columns))


def test_a_large_plan_is_made_claimed_and_merged_in_little_memory():
    """The full size is perf/plan.py's own default."""
    script = Path(__file__).parent.parent / "perf" / "plan.py"
    command = [sys.executable, str(script), "--rows", "5000", "--style", "diversified"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert found["rows"] == 5000 and found["value"] <= 0.5
