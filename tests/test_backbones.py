import json

import numpy as np
import pytest
import timm
import torch
from tiny import backbone

from cilkit import backbones
from cilkit.data.transforms import to_float
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
