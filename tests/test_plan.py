"""The plan: everything that decides an image is fixed before the first is painted."""

import pandas as pd
import pytest

from cilkit.errors import UserError
from cilkit.realms import Realm, foresee
from cilkit.realms.parsing import Row
from cilkit.synthesis import load_generator, make_plan, plan_hash
from cilkit.synthesis.plan import COLUMNS, image_seed


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
