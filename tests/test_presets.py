"""Experiments: a parameter file is what its notebook and its learners take, and its header says where it is from."""

import importlib
import inspect
import itertools
import re
from pathlib import Path

import layouts
import numpy as np
import pytest
import tiny_vlms
from PIL import Image

import cilkit
from cilkit import architectures, artifacts, backbones, learners, published
from cilkit.data import benchmarks
from cilkit.road import answering, learning
from cilkit.road.inputs import parameters_of, with_artifact

HOME = Path(__file__).resolve().parent.parent
PARAMS = HOME / "params"
FILES = sorted(path for number in ("04", "05", "06") for path in PARAMS.glob(f"{number}_*/**/*.yaml"))
TAGS = ("read", "quoted", "third-party", "remembered", "derived", "ours")
TAGGED = re.compile(rf"\[({'|'.join(TAGS)})[\];]")
PLUMBING = {
    "benchmark",
    "base",
    "learners",
    "own",
    "joint_learner",
    "joint_epochs",
    "slow_rates",
    "learner",
    "arms",
    "settings",
}  # the question asked, not how it is answered


def script(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOME / "scripts")
        return importlib.import_module(name)


presets = script("presets")
EXPERIMENTS = presets.experiments()


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


@named(FILES)
def test_the_notebook_and_every_learner_take_what_a_file_holds(path):
    values = parameters_of(path)  # the parameters cell: unknown names and wrong types are refused
    if "arms" in values:
        for name, changes in presets.arms(values).values():
            learners.settings(name, presets.hyper(name, values) | changes)
        learners.settings(values["learner"], values["settings"])
        return
    assert set(values["own"]) <= set(values["learners"]), "`own` sets what no learner of the file reads"
    for name in values["learners"]:
        learners.settings(name, presets.hyper(name, values))
    assert values["joint_learner"] in ("", *values["learners"])


def test_a_misspelt_name_is_refused_in_both_places():
    with pytest.raises(Exception, match="did you mean 'slow_rate'"):
        learners.settings("slca", {"slow_rat": 0.01})
    with pytest.raises(Exception, match="did you mean 'epochs'"):
        parameters_of(PARAMS / "04_slca" / "slca_cifar100.yaml", epohcs=3)


@pytest.mark.parametrize("name", learners.NAMES)
def test_no_parameter_of_a_learner_has_the_name_of_one_of_the_road(name):
    """`cilkit.run("ewc", stream, keep=…)` can only mean one thing."""
    assert not set(learners.settings(name, {})) & presets.taken()


SMALL = {"projection": 50, "total": 16, "align_epochs": 1, "fisher_images": 4}  # what would take long
TINY = {"depth": 5, "embed_dim": 32, "num_heads": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cifar100")
    layouts.write("cifar100", home)
    return home


@pytest.mark.parametrize("method", ["slca_pp", "ewc", "gdumb", "l2p", "coda_prompt", "ranpac"])
def test_an_experiment_runs_on_a_few_images_and_a_tiny_transformer(method, home, tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    path = PARAMS / "04_slca" / f"{method}_cifar100.yaml"
    own = parameters_of(path)["own"]
    own = {name: {key: SMALL.get(key, value) for key, value in values.items()} for name, values in own.items()}
    changes = {
        "benchmark_options": {"root": str(home), "partial": True},
        "backbone": "none",
        "arch": "vit_tiny_patch16_224",
        "model_args": TINY | {"img_size": 32, "patch_size": 8},
    }
    sizes = {"base": 2, "increment": 1, "image_size": 32, "epochs": 1, "milestones": [], "device": "cpu"}
    runs = cilkit.from_params(path, own=own, **changes, **sizes)
    assert set(own) < set(runs)
    for name in own:
        assert runs[name].accuracy.shape == (3, 3) and runs[name].settings["hyper"]["recipe_of"] == "paper"


@pytest.fixture(scope="module")
def painted(home, tmp_path_factory):
    """Four images a class of the folder's classes, as if they had been painted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        real = benchmarks.load("cifar100", str(home), partial=True).train
        yield with_artifact(real, artifacts.obtain("images", 1, {}, {}, lambda work: (work.path / "none").touch()))


REPLAY_SMALL = {"epochs": 1, "milestones": [], "batch_size": 12, "per_class": 4, "device": "cpu", "lr": 0.01}
REPLAY_SMALL |= {"base": 2, "increment": 1, "backbone": "none"}
OWN_SMALL = {"bias_epochs": 1, "bias_milestones": [], "proxies": 2, "tuning_epochs": 1, "early": 1}


RUN = "bic_cifar100_b50_t5 icarl_cifar100_b50_t5 lucir_cifar100_b50_t10_external podnet_cifar100_b50_t5"


@pytest.mark.parametrize("name", [*RUN.split(), "wa_cifar100_b50_t10", "lwm_cifar100", "mae_cil_cifar100"])
def test_a_preset_of_replay_runs_on_a_few_images_and_a_tiny_network(name, home, painted, tmp_path, monkeypatch):
    """Every arm, through the checks of the road."""
    path = PARAMS / "05_generative_replay" / f"{name}.yaml"
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    values = parameters_of(path)
    model = {"img_size": 32, "patch_size": 8} | TINY if "vit" in values["arch"] else values["model_args"] | {"depth": 1}
    own = {key: OWN_SMALL.get(key, value) for key, value in values["settings"].items()}
    arms = {
        arm: changes | ({"images": painted} if "images" in changes else {}) for arm, changes in values["arms"].items()
    }
    changes = REPLAY_SMALL | {"settings": own, "model_args": model, "images": painted}
    changes |= {"benchmark_options": {"root": str(home), "partial": True}}
    checked = parameters_of(path, **{key: changes[key] for key in changes if key != "images"})
    runs = learning.compare(**{**checked, "arms": arms, "images": painted})
    assert list(runs) == list(values["arms"])
    for arm, run in runs.items():
        assert run.accuracy.shape == (3, 3) and run.settings["hyper"]["recipe_of"] in ("paper", "pilot")
        shown = sum(values["arms"][arm].get(key, values[key]) for key in ("a", "b")) and "+" in values["learner"]
        assert bool(run.settings["stored_bytes"].get("synthetic images")) == bool(shown and arm != "external")


def test_distillation_on_real_images_without_labels(home, tmp_path, monkeypatch):
    """`real:` gives a benchmark's training images, and their names are not looked at."""
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    for name in ("x", "y"):
        (tmp_path / "others" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / "others" / name / f"{i}.png")
    on = cilkit.stream("cifar100", increment=2, benchmark_options={"root": str(home), "partial": True})
    arm = {"a": 0.0, "source": "unlabelled", "recipe": "lucir_cifar", "epochs": 1, "milestones": [], "device": "cpu"}
    network = {"arch": "cifar_resnet32", "model_args": {"depth": 1}}
    run = cilkit.run("icarl+synthetic_replay", on, images=f"real:folder:{tmp_path / 'others'}", **network, **arm)
    assert (
        run.settings["stored_bytes"]["external images"] == 4 * 32 * 32 * 3
    )  # of six, a fifth of each class is for tests
    assert run.artifact.inputs["images"]["stage"] == "benchmark"


WRITE = ["gmm_cifar100", "fewshot_cifar100", "llava_imagenet_r", "smolvlm_cifar100"]


@pytest.mark.parametrize("name", WRITE)
def test_a_preset_of_a_model_that_writes_runs_on_a_few_images_and_tiny_parts(name, home, tmp_path, monkeypatch):
    """Every arm, with a model of the same family and random weights; only what is large is made small."""
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    path = PARAMS / "06_generative_classifier" / f"{name}.yaml"
    values = parameters_of(path)
    kind = next(kind for kind in ("blip2", "llava", "smolvlm") if kind in values["backbone"].lower())
    args = values["model_args"] | {"longest": 60, "dtype": "float32"}  # its tokenizer has bytes
    few = {"base": min(2, values["base"]), "increment": 1 if values["base"] else 2, "total": min(4, values["total"])}
    few |= {"benchmark": "cifar100", "image_size": 0, "epochs": 1, "precision": "float32", "device": "cpu"}
    few |= {"benchmark_options": {"root": str(home), "partial": True}, "text_encoder": "embedded", "model_args": args}
    runs = cilkit.from_params(path, backbone=f"vlm:{tiny_vlms.write(kind, tmp_path / kind)}", **few)
    assert list(runs) == list(values["arms"])
    for run in runs.values():
        assert len(run.accuracy) == (3 if values["base"] else 2)
    hyper = next(iter(runs.values())).settings["hyper"]
    for key in ("lr", "final_lr", "warmup", "batch_size", *values["settings"]):
        assert hyper[key] == values.get(key, values["settings"].get(key)), key


def test_the_released_values_are_the_learner_s_own():
    values = parameters_of(PARAMS / "06_generative_classifier" / "gmm_imagenet_r.yaml")
    spelled, released = presets.hyper("gmm", values), learners.settings("gmm", {"recipe_of": "released"})
    given = learners.settings("gmm", spelled)
    different = {key for key in released if given[key] != released[key]} - {"recipe_of", "per_class"}
    assert different == set() and released["total"] == 2000
    answer = inspect.signature(answering.answer).parameters["sentence"].default
    assert values["sentence"] == answer == "this is a photo of a {}."


# ---------------------------------------------------------------- headers


def test_the_comparison_is_there_as_a_whole():
    methods = (
        "slca slca_mocov3 slca_pp ablation slow_learner ewc lwf bic der gdumb l2p dualprompt simplecil aper ranpac"
    )
    for method, benchmark in itertools.product(methods.split(), ("cifar100", "imagenet_r", "cub200", "cars196")):
        assert PARAMS / "04_slca" / f"{method}_{benchmark}.yaml" in EXPERIMENTS


@named(EXPERIMENTS)
def test_every_hyper_parameter_says_what_the_source_has_and_how_that_is_known(path):
    header, body = path.read_text().split(f"\n{presets.END}\n")
    for line in body.splitlines():
        key = line.partition(":")[0].strip()
        if key in PLUMBING or "+" in key or key in learners.NAMES:
            continue
        assert TAGGED.search(line.partition("#")[2]), f"{path.name}: {line.strip()!r} does not say how it is known"
    for line in [*header.splitlines(), *body.splitlines()]:
        assert len(line) <= 120 and not ("remembered" in line and "published" in line.replace(str(published.FILE), ""))


@named(EXPERIMENTS)
def test_what_is_expected_is_what_published_yaml_has(path):
    lines = presets.expected(parameters_of(path))
    assert "\n".join(lines) + "\n" in path.read_text(), "run scripts/presets.py"
    assert all(re.search(r"\[(read|quoted|third-party|remembered|derived)\] \w+$", line) for line in lines[1:])


def test_slca_s_cost_is_the_formula_s():
    """1.0 M training images (10 tasks x 20 epochs x 5,000), 50,000 for statistics, 55,000 to test."""
    path = PARAMS / "04_slca" / "slca_cifar100.yaml"
    values = parameters_of(path)
    cost = presets.cost_of("slca", values, presets.stream_of(values))
    assert cost.images == {"student": 1_000_000, "statistics": 50_000, "test": 55_000}
    assert cost.flops["test"] == pytest.approx(
        2 * 17.56e9, rel=0.01
    )  # 17.56 G multiplications: timm's table, remembered
    assert cost.total == 1_000_000 * cost.flops["student"] + 105_000 * cost.flops["test"]
    assert f"slca {cost.total:.2e} = " in path.read_text()
    assert "derived" in path.read_text().lower() and "measured" not in path.read_text()


def test_sddr_s_memory_stands_beside_podnet_s_table_for_as_many_tasks():
    lines = "\n".join(presets.expected(parameters_of(PARAMS / "05_generative_replay" / "lucir_cifar100_b50_t5.yaml")))
    for row in (
        "20 real, 5 tasks: last 53.91, average 63.37",
        "500 synthetic, 5 tasks: last 38.78, average 55.77",
        "LUCIR, 5 tasks: average 64.01",
        "PODNet (CNN), 5 tasks: average 64.83",
        "iCaRL, 5 tasks: average 58.08",
    ):
        assert f"#   {row} [third-party]" in lines
    assert "10 tasks" not in lines and "remembered" not in lines


def test_half_of_the_classes_come_first_and_then_as_many_tasks_as_the_name_says():
    files = [path for path in EXPERIMENTS if "_b50_t" in path.stem]
    assert {path.stem for path in files} >= {
        f"{method}_cifar100_b50_t{tasks}"
        for method, tasks in itertools.product(("lucir", "podnet", "icarl", "bic"), (5, 10, 25))
    }
    for path in files:
        values = parameters_of(path)
        stream = presets.stream_of(values)
        assert len(stream) == 1 + int(re.search(r"_t(\d+)", path.stem)[1])
        assert 2 * len(stream[0].classes) == stream.n_classes
    assert stream_of_cifar().class_names[:5] == ["68", "56", "78", "8", "23"], "LUCIR's order"


def stream_of_cifar():
    return presets.stream_of(parameters_of(PARAMS / "05_generative_replay" / "lucir_cifar100_b50_t5.yaml"))


def test_a_residual_network_is_counted_with_its_arms():
    """ResNet-32 on 32 pixels: 69 M multiplications (He et al.); b alone brings the teacher to the synthetic images."""
    path = PARAMS / "05_generative_replay" / "lucir_cifar100_b50_t5.yaml"
    values = parameters_of(path)
    each = presets.trainings(values, presets.stream_of(values))
    assert list(each) == ["none", "distillation", "replay", "both"]
    assert each["none"].flops["test"] == pytest.approx(2 * 69e6, rel=0.01)
    assert each["none"].flops["student"] == pytest.approx(3 * each["none"].flops["test"], rel=0.01)
    later = 160 * sum(5000 + 20 * seen for seen in range(50, 100, 10))  # images and exemplars of the five later tasks
    assert each["none"].images["teacher"] == later and each["none"].images["student"] == later + 160 * 25_000
    assert each["replay"].images["teacher"] == later and each["both"].images["teacher"] == 2 * later
    assert each["both"].images["student"] == each["none"].images["student"] + later


def test_a_model_that_writes_is_counted_through_both_of_its_parts():
    """2,514 training images in two epochs, 540 test images; 20 exemplars a class before tasks 2 to 5."""
    values = parameters_of(PARAMS / "06_generative_classifier" / "controls.yaml")
    each = presets.trainings(values, presets.stream_of(values))
    assert list(each) == ["GMM", "GMM without exemplars", "zero-shot", "shuffled names", "linear head", "class means"]
    plain, bare, zero = each["GMM"], each["GMM without exemplars"], each["zero-shot"]
    train = 2514
    assert bare.images["tuned"] == 2 * train and bare.images["statistics"] == train
    assert plain.images["statistics"] == train + 20 * (2 + 4 + 6 + 8) and plain.images["tuned"] > 2 * train
    assert plain.images["answered"] == 3 * plain.images["test"]
    assert set(zero.images) == {"test", "answered"} and "tuned" not in each["linear head"].images
    assert plain.flops["test"] == each["class means"].flops["test"] < plain.flops["tuned"]
    assert plain.total == sum(count * plain.flops[kind] for kind, count in plain.images.items())


@pytest.mark.slow
def test_all_headers_are_up_to_date():
    assert [path.name for path, _ in presets.outdated()] == []


# ---------------------------------------------------------------- paradigms


@pytest.mark.parametrize("name", [name for name, weights in architectures.WEIGHTS.items() if weights.paradigm])
def test_weights_load_in_the_format_in_which_they_are_published(name, tmp_path, monkeypatch):
    """A network of the same kind, a few blocks of 16 numbers, where timm looks for the real one."""
    import timm
    import torch
    from huggingface_hub import constants
    from safetensors.torch import save_file

    weights = architectures.WEIGHTS[name]
    torch.manual_seed(3)
    classes = timm.get_pretrained_cfg(weights.arch).num_classes or 0
    model = timm.create_model(weights.arch, pretrained=False, num_classes=min(classes, 5), **TINY).eval()
    spec = name
    if weights.file:
        torch.save({"model": model.state_dict()}, tmp_path / weights.file)
        spec = f"{name}:{tmp_path / weights.file}"
    else:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        home = tmp_path / "hub" / f"models--timm--{weights.arch}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0" * 40)
        (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(model.state_dict(), home / "snapshots" / ("0" * 40) / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    made = backbones.load(spec, model_args=TINY)
    assert made.input.size == 224 and made.tag.startswith(name) and made.dim == TINY["embed_dim"]
    floats = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(made.mean)[:, None, None]
    ) / torch.tensor(made.std)[:, None, None]
    with torch.no_grad():
        expected = model.forward_features(floats)[:, 0]  # the class token behind the final norm
    np.testing.assert_allclose(backbones.extract(made, images, "probe"), expected, atol=1e-4)
