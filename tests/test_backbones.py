import hashlib
import json

import numpy as np
import pytest
import timm
import torch
from tiny import ARGS, backbone, image_set

from cilkit import architectures, backbones
from cilkit.data.transforms import recipe, to_float
from cilkit.errors import UserError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def weights_of(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_be():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = backbone(seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights_of(one), weights_of(backbone(seed=1)))
    assert not torch.equal(weights_of(one), weights_of(backbone(seed=2)))


def test_plain_timm_loads_what_is_saved_and_gives_equal_features(tmp_path, images):
    made = backbone()
    made.train()
    with torch.no_grad():
        made(torch.randn(16, 3, 32, 32), "student")  # running statistics that are not the initial ones
    backbones.save(made, tmp_path, {"note": "test"})
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        features = plain(to_float(images, made.mean, made.std)).numpy()
    np.testing.assert_allclose(features, backbones.extract(made, images, "probe"), atol=1e-5)
    again = backbones.load(tmp_path)
    assert np.array_equal(backbones.extract(again, images, "probe"), backbones.extract(made, images, "probe"))
    assert (again.mean, again.std, again.dim, again.arch) == (made.mean, made.std, made.dim, made.arch)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        backbones.save(backbone(), tmp_path / name)
    for file in (backbones.CONFIG, backbones.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_damaged_missing_or_foreign_weights_file_is_one_sentence(tmp_path):
    backbones.save(backbone(), tmp_path)
    file = tmp_path / backbones.WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        backbones.load(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="holds no model.safetensors"):
        backbones.load(tmp_path)
    file.write_bytes(whole)
    card = json.loads((tmp_path / backbones.CONFIG).read_text())
    card["model_args"]["channels"] = [8, 8, 8, 8]
    (tmp_path / backbones.CONFIG).write_text(json.dumps(card))
    with pytest.raises(UserError, match="do not fit"):
        backbones.load(tmp_path)


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        backbones.create("resnet18x")
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        backbones.load("resnet18x")
    with pytest.raises(UserError, match="does not take"):
        backbones.create("resnet18", model_args={"chanels": [1]})
    with pytest.raises(UserError, match="no backbone at"):
        backbones.load("./nowhere")


def test_every_image_is_counted_by_kind_the_teacher_s_too(images):
    made = backbone()
    backbones.extract(made, images, "statistics", batch_size=2)
    teacher = made.frozen_copy()
    teacher(torch.zeros(3, 3, 32, 32), "teacher")
    assert dict(made.forwarded) == {"statistics": 5, "teacher": 3}
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert all(p.requires_grad for p in made.parameters())
    with pytest.raises(UserError, match="no kind"):
        made(torch.zeros(1, 3, 32, 32), "diagnosis")


def test_extract_is_the_forward_pass_in_eval_mode_whatever_the_batch_size(images):
    made = backbone().train()
    features = backbones.extract(made, images, "probe", batch_size=2)
    assert made.training and features.dtype == np.float32 and features.shape == (5, made.dim)
    np.testing.assert_allclose(features, backbones.extract(made, images, "probe"), atol=1e-5)
    assert backbones.extract(made, images[:0], "probe").shape == (0, made.dim)


@pytest.mark.parametrize(("norm", "moves"), [("frozen", False), ("batch", True)])
def test_running_statistics_move_only_when_asked_to(norm, moves):
    made = backbone()
    before = made.model.bn1.running_mean.clone()
    made.learning(norm)
    made(torch.randn(8, 3, 16, 16), "student")
    assert made.training and torch.equal(made.model.bn1.running_mean, before) is not moves


def test_the_tiny_transformer_is_used_the_same_way(images):
    vit = backbones.create("small_vit")
    assert backbones.extract(vit, images, "probe").shape == (5, vit.dim) == (5, 96)


def test_the_default_is_small():
    made = backbones.create(seed=0)
    assert made.dim == 128 and sum(p.numel() for p in made.parameters()) < 400_000


# ---------------------------------------------------------------- what else names a backbone


TAGGED = "test_vit.r160_in1k"  # timm's own test network: 0.37 M parameters


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache that holds random weights under TAGGED's name, and no network."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(3)
    model = timm.create_model("test_vit").eval()
    home = tmp_path / "hub" / f"models--timm--{TAGGED}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(model.state_dict(), home / "snapshots" / ("0" * 40) / "model.safetensors")
    return model


def pooled(model, images):
    """A timm model's features, its classifier aside."""
    with torch.no_grad():
        return model.forward_head(model.forward_features(to_float(images, (0.5,) * 3, (0.5,) * 3)), pre_logits=True)


@pytest.mark.parametrize("name", [TAGGED, "test_vit"])
def test_a_name_of_timm_brings_the_weights_of_its_tag_and_says_which(name, hub, tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3)).astype(np.uint8)
    made = backbones.load(name)
    assert made.tag == TAGGED
    assert (made.input.size, made.input.mean, made.input.crop_pct) == (160, (0.5, 0.5, 0.5), 0.95)
    np.testing.assert_allclose(backbones.extract(made, large, "probe"), pooled(hub, large), atol=1e-5)
    backbones.save(made, tmp_path / "saved")
    again = backbones.load(tmp_path / "saved")
    assert again.input == made.input and again.tag.startswith(f"{name}@")
    assert np.array_equal(backbones.extract(again, large, "probe"), backbones.extract(made, large, "probe"))


def test_unknown_tags_and_weights_that_cannot_be_had_are_one_sentence(hub):
    with pytest.raises(UserError, match="no weights 'r160_in2k' of 'test_vit'.*did you mean 'test_vit.r160_in1k'"):
        backbones.load("test_vit.r160_in2k")
    with pytest.raises(UserError, match="cannot be had"):
        backbones.load("resnet18.a1_in1k")  # not in the cache, and there is no network
    with pytest.raises(UserError, match="cannot be had.*hf-hub:"):
        backbones.load("timm/resnet18.a1_in1k")


def test_a_folder_that_timm_wrote_is_read_with_its_own_input(hub, tmp_path):
    from timm.models import save_for_hf

    save_for_hf(hub, str(tmp_path), safe_serialization=True)
    made = backbones.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3)).astype(np.uint8)
    assert (made.tag, made.input.size, made.input.crop_pct) == (TAGGED, 160, 0.95)
    np.testing.assert_allclose(backbones.extract(made, images, "probe"), pooled(hub, images), atol=1e-5)
    assert backbones.load(f"local-dir:{tmp_path}").tag == TAGGED


def write(backbone, path, change):
    """Its weights as one safetensors file, after `change(weights)`."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in backbone.model.state_dict().items()}
    change(weights)
    save_file(weights, path)


def halve(weights):
    weights.update({name: value.half() for name, value in weights.items() if value.is_floating_point()})


@pytest.mark.parametrize("half", [False, True])
def test_a_file_of_weights_needs_its_architecture(half, tmp_path, images):
    made = backbone().eval()
    file = tmp_path / "mine.safetensors"
    write(made, file, lambda weights: halve(weights) if half else None)
    again = backbones.load(str(file), arch="small_resnet", model_args=ARGS)
    found, expected = (backbones.extract(one, images, "probe") for one in (again, made))
    np.testing.assert_allclose(found, expected, atol=1e-2 if half else 0)
    assert again.model.conv1[0].weight.dtype == torch.float32
    assert again.tag == f"mine.safetensors@{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    assert all(int(norm.num_batches_tracked) == 1 for norm in again.norms)  # running statistics come with the weights
    with pytest.raises(UserError, match="no architecture"):
        backbones.load(file)
    with pytest.raises(UserError, match="no backbone at"):
        backbones.load(str(tmp_path / "other.safetensors"), arch="resnet18")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        backbones.load(file, arch="small_resnet", model_args=ARGS)


def test_a_checkpoint_of_another_project_is_read_as_plain_tensors_or_refused(tmp_path, images):
    made = backbone().eval()
    torch.save({"epoch": 3, "model": made.model.state_dict()}, tmp_path / "good.pth")
    again = backbones.load(tmp_path / "good.pth", arch="small_resnet", model_args=ARGS)
    assert np.array_equal(backbones.extract(again, images, "probe"), backbones.extract(made, images, "probe"))
    torch.save({"model": made.model.state_dict(), "trap": Trap()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="damaged"):
        backbones.load(tmp_path / "bad.pth", arch="small_resnet", model_args=ARGS)
    assert not Trap.sprung


class Trap:
    """Un-pickling it would run code."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_weights_that_do_not_fit_name_the_first_difference(tmp_path):
    file = tmp_path / "weights.safetensors"

    def refused(change, message):
        write(backbone(), file, change)
        with pytest.raises(UserError, match=message):
            backbones.load(file, arch="small_resnet", model_args=ARGS)

    refused(lambda w: w.pop("bn1.weight"), "'bn1.weight' is missing$")
    refused(lambda w: w.update(extra=torch.zeros(1)), "'extra' is unexpected$")
    refused(lambda w: w.update({"bn1.bias": torch.zeros(3)}), r"'bn1.bias' is \(3,\), expected \(16,\)$")
    refused(lambda w: [w.pop("bn1.weight"), w.pop("bn1.bias")], "missing \\(the first of 2")
    write(backbone(), file, lambda w: w.update({"fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}))
    backbones.load(file, arch="small_resnet", model_args=ARGS)  # a classifier is left out


def test_the_presets_stand_for_weights_that_timm_knows():
    for name, preset in architectures.WEIGHTS.items():
        assert timm.is_model(preset.arch), name
        assert preset.file or preset.arch in timm.list_pretrained(preset.arch), name


def test_a_preset_renews_the_final_norm_as_slca_does(hub, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    monkeypatch.setitem(architectures.WEIGHTS, "tagged", architectures.Weights(TAGGED, fresh_norm=True))
    monkeypatch.setitem(
        architectures.WEIGHTS, "filed", architectures.Weights("test_vit", fresh_norm=True, file="it.pth")
    )
    save_file(hub.state_dict(), tmp_path / "it.safetensors")
    with pytest.raises(UserError, match="needs the weights it.pth"):
        backbones.load("filed")
    with pytest.raises(UserError, match="'tagged:.*nowhere.pth, which is not there"):
        backbones.load(f"tagged:{tmp_path}/nowhere.pth")
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3)).astype(np.uint8)
    with torch.no_grad():
        hub.norm = torch.nn.Identity()
        before_norm = pooled(hub, images)
    expected = torch.nn.functional.layer_norm(before_norm, (64,), eps=1e-5)
    for spec, tag in (("tagged", "tagged"), (f"filed:{tmp_path}/it.safetensors", "filed:it.safetensors@")):
        made = backbones.load(spec)
        assert made.tag.startswith(tag) and made.model.norm.eps == 1e-5
        assert all(p.requires_grad for p in made.model.norm.parameters())
        np.testing.assert_allclose(backbones.extract(made, images, "probe"), expected, atol=1e-4)
    with torch.no_grad():
        made.model.norm.weight.mul_(2)
    backbones.save(made, tmp_path / "saved")
    again = backbones.load(tmp_path / "saved")
    assert again.model.norm.eps == 1e-5 and torch.equal(again.model.norm.weight, made.model.norm.weight)
    with pytest.raises(UserError, match="no final LayerNorm"):
        backbone().renew_final_norm()


def test_an_image_set_gives_what_its_array_gives(images):
    made = backbone()
    some = image_set(classes=3, per_class=6)
    expected = backbones.extract(made, some.images(), "probe", batch_size=5)
    assert np.array_equal(backbones.extract(made, some, "probe", batch_size=5), expected)
    assert np.array_equal(backbones.extract(made, some, "probe", recipe("none", made.input), batch_size=5), expected)
    upside_down = some.select(np.arange(len(some))[::-1])
    np.testing.assert_allclose(backbones.extract(made, upside_down, "probe"), expected[::-1], atol=1e-5)
    resized = recipe("timm_test", made.input, 24)
    with torch.no_grad():
        by_hand = made.eval()(resized.test(some.images()), "probe").numpy()
    np.testing.assert_allclose(backbones.extract(made, some, "probe", resized), by_hand, atol=1e-5)


def test_what_is_trained_here_has_no_size_of_its_own_unless_its_network_has(tmp_path):
    assert backbone().input.size == 0 and backbones.create("small_vit").input.size == 32
    for arch, size in (("small_resnet", 0), ("small_vit", 32)):
        backbones.save(backbones.create(arch), tmp_path / arch)
        assert backbones.load(tmp_path / arch).input == backbones.create(arch).input
        card = json.loads((tmp_path / arch / backbones.CONFIG).read_text())
        assert "input" not in card and backbones.load(tmp_path / arch).input.size == size


def test_the_tag_says_which_weights_these_are(tmp_path):
    assert backbone().tag == "resnet10t.random"
    for name, tag in (("plain", ""), ("named", "letters")):
        backbones.save(backbone(), tmp_path / name, tag=tag)
    assert backbones.load(tmp_path / "named").tag == "resnet10t.letters"
    digest = hashlib.sha256((tmp_path / "plain" / backbones.WEIGHTS).read_bytes()).hexdigest()[:8]
    assert backbones.load(tmp_path / "plain").tag == f"resnet10t@{digest}"
