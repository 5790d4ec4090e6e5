"""The verbs: what they find, what they make, what they refuse, and what they load."""

import functools
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import cilkit
from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road import inputs

TINY = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def realm():
    return cilkit.foresee("handwritten characters")


@pytest.fixture(scope="module")
def images(realm):
    return cilkit.paint(realm, generator="font-renderings", per_class=4, workers=1)


@pytest.fixture(scope="module")
def backbone(images):
    return cilkit.pretrain(images, **TINY, epochs=1, batch_size=32, without_classes_of="digits_photo")


def test_golden_digests(realm):
    """A stage whose meaning changes must raise its VERSION; then these change with it, and only then."""
    from cilkit.synthesis import make_plan, plan_hash

    assert (realm.artifact.key[:8], realm.artifact.digest[:8]) == ("9e620210", "ec221724")
    assert plan_hash(make_plan(realm, per_class=2, seed=0, batch_size=8))[:8] == "05d2576a"


def test_golden_numbers(backbone):
    """Floating-point stages: the same up to what another processor may change."""
    first = backbone.report["epochs"][0]
    assert first["loss"] == pytest.approx(3.6217, abs=0.01)


def test_the_filtered_arm_holds_no_class_of_the_benchmark(backbone, images):
    classes = backbone.report["classes"]
    assert len(images.class_names) == 47 and len(classes) == 37
    assert not [name for name in classes if name.startswith("digit")]
    assert backbone.report["images"] == 37 * 4


def test_no_parameter_of_the_synthetic_classes_is_left(backbone):
    from safetensors import safe_open

    with safe_open(backbone.artifact.path / "model.safetensors", "np") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert not any(37 in shape for shape in shapes.values())
    assert not any(name.startswith(("fc", "head", "classifier")) for name in shapes)


def test_execution_parameters_do_not_change_the_key(realm, images):
    assert (
        cilkit.paint(realm, generator="font-renderings", per_class=4, workers=2).artifact.path == images.artifact.path
    )


def test_a_parameter_file_is_the_verb_with_the_notebooks_defaults():
    by_file = cilkit.from_params("params/01_realm_prompting/characters.yaml")
    assert by_file.artifact.path == cilkit.foresee("handwritten characters").artifact.path
    other = cilkit.from_params("params/01_realm_prompting/ornaments.yaml")
    assert len(other) == len(by_file) and not set(other.concept_names) & set(by_file.concept_names)


def test_inputs_may_be_objects_artifacts_names_and_folders(images):
    artifact = images.artifact
    for spec in (images, artifact, artifact.name, str(artifact.path)):
        assert inputs.upstream(spec, "images").artifact.digest == artifact.digest


def test_wrong_inputs_are_one_sentence(realm, tmp_path):
    with pytest.raises(UserError, match="is of stage 'realm'; an artifact of stage 'images' is wanted"):
        cilkit.pretrain(realm, **TINY, epochs=1)
    with pytest.raises(UserError, match="does not exist"):
        cilkit.from_params("params/03_pretraining/nothing.yaml")
    lost = tmp_path / "x.yaml"
    lost.write_text("realm: a\n")
    with pytest.raises(UserError, match="an input is described in one of"):
        cilkit.from_params(lost)


def test_a_misspelt_parameter_in_a_file_stops_before_any_work(tmp_path, monkeypatch):
    folder = tmp_path / "03_pretraining"
    folder.mkdir()
    (folder / "x.yaml").write_text("epoch: 3\n")
    with pytest.raises(UserError, match="epochs"):
        cilkit.from_params(folder / "x.yaml")


def test_unknown_parameters_of_learners_are_refused():
    with pytest.raises(UserError, match="no learner has a parameter 'momentun'"):
        cilkit.learn(["slca"], momentun=0.9)
    with pytest.raises(UserError, match="'icarl', which is not among"):
        cilkit.learn(["slca"], own={"icarl": {}})


def test_arms_may_be_other_learners_and_all_are_checked_before_the_first_runs(images, backbone, monkeypatch):
    on = {"benchmark": "digits_photo", "increment": 2, "tasks": 1, "backbone": backbone, "images": images}
    hyper = {"epochs": 1, "milestones": [1], "per_class": 2}
    runs = cilkit.compare(
        "icarl+synthetic_replay",
        {"none": {"a": 0.0, "b": 0.0}, "nothing": {"learner": "finetune", "lr": 0.02}},
        settings={"criterion": "ce"},
        **on,
        **hyper,
    )
    assert [run.learner for run in runs.values()] == ["icarl+synthetic_replay", "finetune"]
    assert runs["none"].n_tasks == 1 and runs["none"].settings["hyper"]["criterion"] == "ce"
    assert "images" in runs["none"].artifact.inputs and "images" not in runs["nothing"].artifact.inputs
    with monkeypatch.context() as patched:
        never = functools.wraps(cilkit.run)(lambda *a, **k: pytest.fail("something was run"))
        patched.setattr("cilkit.road.learning.run", never)
        with pytest.raises(UserError, match="no parameter 'per_clas'"):
            cilkit.compare("icarl", {"fine": {}, "wrong": {"per_clas": 3}}, **on, **hyper)
        with pytest.raises(UserError, match="no learner has a parameter 'epoch'"):
            cilkit.compare("icarl", {"fine": {}}, **on, epoch=3)


def test_a_damaged_backbone_is_one_sentence(images):
    made = cilkit.pretrain(images, **TINY, epochs=1, batch_size=32, seed_init=5)
    path = made.artifact.path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes(10))  # same size: found by its hash
    assert artifacts.verify(made.artifact) == [
        f"{made.artifact.name}: model.safetensors was changed after it was written"
    ]
    path.write_bytes(b"\xff" * len(whole))  # a header that cannot be read
    with pytest.raises(UserError, match="is damaged .*make it again"):
        made.load()
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="100 bytes"):
        cilkit.pretrain(images, **TINY, epochs=1, batch_size=32, seed_init=5)


def test_a_learner_of_ones_own_is_told_apart_by_its_source(backbone):
    from cilkit.learners.nearest_mean import NearestMean

    class Mine(NearestMean):
        """Nearest mean by another name."""

    stream = cilkit.stream("digits")[:2]
    mine, theirs = (cilkit.run(one, stream, backbone=backbone) for one in (Mine, "nearest_mean"))
    assert mine.artifact.key != theirs.artifact.key
    assert np.array_equal(mine.accuracy.to_numpy(), theirs.accuracy.to_numpy(), equal_nan=True)


def test_joint_training_is_a_stream_of_one_task(backbone):
    runs = cilkit.learn(
        ["finetune"], benchmark="digits", backbone=backbone, epochs=1, joint_learner="finetune", joint_epochs=1
    )
    assert runs["joint"].n_tasks == 1 and runs["finetune"].n_tasks == 5
    spent = runs["joint"].settings["forwards"]["spent"]["student"]
    assert spent == len(cilkit.stream("digits").train)


HIT = """
import sys
import cilkit
realm = cilkit.foresee("handwritten characters")
images = cilkit.paint(realm, generator="font-renderings", per_class=4, workers=1)
tiny = dict(arch="resnet10t", model_args={args}, epochs=1, batch_size=32)
backbone = cilkit.pretrain(images, without_classes_of="digits_photo", **tiny)
stream = cilkit.stream("digits")[:2]
run = cilkit.run("nearest_mean", stream, backbone=backbone)
from cilkit import analysis, plots
plots.accuracy_heat_map(run.accuracy)
plots.drift_curves(analysis.class_mean_drift(run))
print(run.artifact.name, sorted(set(sys.modules) & {{"torch", "timm", "diffusers", "transformers", "torchvision"}}))
"""


def test_a_cache_hit_and_all_drawing_need_no_torch(backbone, own_root):
    made = cilkit.run("nearest_mean", cilkit.stream("digits")[:2], backbone=backbone)
    code = textwrap.dedent(HIT.format(args=TINY["model_args"]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{made.artifact.name} []", done.stderr[-2000:]


# ---------------------------------------------------------------- real streams


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    import layouts

    return {"root": str(layouts.write("pacs", tmp_path_factory.mktemp("raw") / "pacs")), "partial": True}


def test_each_image_passes_a_frozen_backbone_once_for_all_runs(own_root):
    import json

    def made() -> list[int]:
        cards = [json.loads(path.read_text()) for path in set(own_root.glob("features/*/features.json")) - before]
        return sorted(card["forwarded"] for card in cards)

    before = set(own_root.glob("features/*/features.json"))
    settings = {"backbone": "none", **TINY, "seed_init": 3}
    first = cilkit.run("nearest_mean", cilkit.stream("digits", order_seed=1993), **settings)
    assert made() == [540, 1257]
    for seed in (1996, 1997):
        run = cilkit.run("nearest_mean", cilkit.stream("digits", order_seed=seed), **settings)
        assert run.settings["forwards"]["spent"] == {} and run.settings["forwards"]["found"]
        assert run.settings["forwards"]["declared"] == {"statistics": 1257, "test": 540}
        last = [one.summary()["last accuracy"] for one in (run, first)]
        assert last[0] == last[1]  # the nearest mean does not care for the order
    assert made() == [540, 1257]


def test_a_domain_stream_from_raw_files_to_results(pacs):
    from cilkit import outcomes

    runs = cilkit.learn(
        ["nearest_mean", "slow_learner"], {"slow_learner": {"slow_rate": 1.0}}, benchmark="pacs", protocol="domain",
        benchmark_options=pacs, **TINY, recipe="timm", image_size=32, epochs=1, milestones=[], batch_size=8, lr=0.05,
    )  # fmt: skip
    table = outcomes.collect(runs.values()).set_index("learner")
    assert (table["protocol"] == "domain").all() and (table["tasks"] == 4).all()
    assert table["forward transfer (against chance)"].notna().all()
    assert table.loc["nearest_mean", "last accuracy"] > 60  # colours: chance is 25 %
    assert (table[["seconds: train", "seconds: test", "peak bytes: train"]] > 0).all(axis=None)
    assert table["backbone"].str.startswith("resnet10t").all()


def test_protocol_order_and_validation_reach_the_stream(pacs):
    stream = cilkit.stream("pacs", protocol="domain", order=["photo", "sketch", "cartoon", "art_painting"],
                           benchmark_options=pacs, validation=0.34)  # fmt: skip
    assert [name.split(": ")[1] for name in stream.task_names][:2] == ["photo", "sketch"]
    assert stream.test.source is stream.train.source  # training images, held out
    base = cilkit.stream("digits", base=4, increment=3)
    assert base.sizes == (4, 3, 3)
    few = cilkit.stream("digits", base=4, increment=3, shots=5)
    assert few.train.counts[4:].tolist() == [5] * 6 and (few[0].train.index == base[0].train.index).all()


def test_what_is_kept_and_where_it_runs_can_be_asked_for():
    with pytest.raises(UserError, match="device 'cuda:7' is not there"):
        cilkit.run("nearest_mean", cilkit.stream("digits"), **TINY, device="cuda:7")
    with pytest.raises(UserError, match="'logit' cannot be kept"):
        cilkit.run("finetune", cilkit.stream("digits"), **TINY, keep=["logit"])


def test_a_learner_that_keeps_images_keeps_places_in_the_cache(tmp_path):
    """Exemplars of a set whose images differ in size; what they take is counted in pixels."""
    import layouts

    folder = layouts.write("folder", tmp_path / "raw")
    stream = cilkit.stream(f"folder:{folder}", increment=2)
    assert not stream.train.source.uniform
    settings = {"recipe": "timm", "image_size": 32, "epochs": 1, "milestones": [], "batch_size": 8, "per_class": 2}
    run = cilkit.run("icarl", stream, **TINY, **settings)
    forwards = run.settings["forwards"]
    assert forwards["spent"] == forwards["declared"]
    sizes = stream.train.sizes.astype(int).prod(1) * 3
    stored = run.settings["stored_bytes"]["exemplars"]
    assert 8 * sizes.min() <= stored <= 8 * sizes.max() and run.accuracy.notna().to_numpy()[1].all()
