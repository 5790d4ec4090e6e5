"""The CIFAR networks as timm models and as backbones, and the maps that a backbone gives stage by stage."""

import subprocess
import sys

import pytest
import timm
import tiny
import torch
from torch.nn.functional import batch_norm, conv2d

from cilkit import backbones, cifar_resnets, incremental, learners
from cilkit.errors import UserError

NAMES = ("cifar_resnet32", "cifar_resnet18")


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def parameters(name, **args):
    return sum(p.numel() for p in timm.create_model(name, num_classes=10, **args).parameters())


def test_the_parameters_are_those_of_the_papers():
    """Counted by hand: 3 x 3 convolutions, two numbers a channel of each normalisation, the head."""
    stem, head = 27 * 16 + 32, 64 * 10 + 10
    by_hand = stem + sum(9 * a * b + 2 * b for a, b in block_widths((16, 32, 64), 5)) + head
    assert parameters("cifar_resnet32") == by_hand == 464_154  # 0.46 M: He et al., table 6
    assert parameters("cifar_resnet32", padded=False) == by_hand + 16 * 32 + 64 + 32 * 64 + 128  # LUCIR's shortcuts
    # timm's ResNet-18 for 10 classes, with a stem of 3 x 3 in place of 7 x 7
    assert parameters("cifar_resnet18") == parameters("resnet18") - (49 - 9) * 3 * 64 == 11_173_962


def block_widths(channels, depth):
    before = channels[0]
    for width in channels:
        for _ in range(depth):
            yield before, width
            yield width, width
            before = width


def test_resnet32_is_the_paper_s_network(images):
    """Written out again from its weights: two convolutions a block, option A where the maps halve."""
    model = timm.create_model("cifar_resnet32", num_classes=10, final_relu=False)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    w = {name: value.detach() for name, value in model.state_dict().items()}

    def convolved(maps, conv, norm, stride=1):
        maps = conv2d(maps, w[f"{conv}.weight"], stride=stride, padding=1)
        return batch_norm(
            maps, w[f"{norm}.running_mean"], w[f"{norm}.running_var"], w[f"{norm}.weight"], w[f"{norm}.bias"]
        )

    maps = convolved(images, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(5):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = convolved(maps, f"{name}.conv1", f"{name}.bn1", stride).relu()
            inner = convolved(inner, f"{name}.conv2", f"{name}.bn2")
            if stride == 2:
                shortcut, quarter = torch.zeros_like(inner), inner.shape[1] // 4
                shortcut[:, quarter:-quarter] = maps[:, :, ::2, ::2]
                maps = shortcut
            maps = maps + inner
            maps = maps if (stage, block) == (3, 4) else maps.relu()
    expected = maps.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(model.eval()(images).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_relu_can_be_left_out(name, images):
    negative = []
    for final_relu in (True, False):
        features = backbones.create(name, model_args={"final_relu": final_relu}).eval()(images, "probe")
        negative.append(bool((features < 0).any()))
    assert negative == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_timm_s_face(name, images):
    model = timm.create_model(name, num_classes=7).eval()
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert torch.equal(last, model.forward_features(images)) and torch.equal(last, maps[-1])
        assert [tuple(one.shape[1:]) for one in maps] == [
            (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"]) for info in model.feature_info
        ]
        assert len(model.forward_intermediates(images, 2, intermediates_only=True)) == 2
        features = model.forward_head(last, pre_logits=True)
        assert features.shape == (3, model.num_features) and torch.equal(
            model(images), model.get_classifier()(features)
        )
        model.reset_classifier(0)
        assert torch.equal(model(images), features)
    assert model.pretrained_cfg["mean"] == (0.5071, 0.4866, 0.4409)
    assert "cifar_resnet32" in timm.list_models("cifar_*") and cifar_resnets.CONFIG["url"] == ""
    with pytest.raises(UserError, match=f"timm cannot build '{name}'"):
        backbones.load(name)  # nobody publishes weights under this name


def test_nobody_needs_to_import_them():
    code = "from cilkit import backbones; print(backbones.load('none', arch='cifar_resnet32').dim)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "64\n"


def test_they_are_saved_loaded_and_learn_like_any_other(tmp_path, images):
    made = backbones.create("cifar_resnet32", seed=3, model_args={"final_relu": False})
    assert (made.dim, made.input.size, made.arch) == (64, 0, "cifar_resnet32")
    backbones.save(made, tmp_path)
    again = backbones.load(tmp_path)
    assert torch.equal(again.eval()(images, "probe"), made.eval()(images, "probe")) and again.mean == made.mean
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(plain(images), made(images, "probe"))
    stream = tiny.stream(classes=4)
    learner = learners.create("finetune", again, epochs=1, milestones=(), batch_size=8, recipe="shift")
    incremental.run_stream(learner, stream, None)
    outputs = learner.predict(stream.test_after(stream[1]))
    assert outputs.heads["raw"].shape == (20, 4) and outputs.features.shape == (20, 64)


# ------------------------------------------------------------ maps stage by stage


@pytest.mark.parametrize(
    ("arch", "args", "stages"),
    [
        ("small_resnet", {}, 4),
        ("cifar_resnet32", {"final_relu": False}, 3),
        ("cifar_resnet18", {}, 4),
        ("resnet18", {}, 4),
        ("convnext_atto", {}, 4),
        ("regnetx_002", {}, 4),
    ],
)
def test_features_and_maps_of_every_stage_come_from_one_counted_pass(arch, args, stages, images):
    made = backbones.create(arch, model_args=args).eval()
    passes = []
    made.model.forward_head, head = lambda *a, **k: (passes.append(1), head(*a, **k))[1], made.model.forward_head
    with torch.no_grad():
        features, maps = made.stages(images, "teacher")
        assert dict(made.forwarded) == {"teacher": 3} and len(passes) == 1
        assert torch.equal(features, made(images, "probe"))
    assert len(maps) == stages and all(one.ndim == 4 and one.dtype == torch.float32 for one in maps)
    assert maps[-1].shape[1] == made.dim
    sizes = [one.shape[-1] for one in maps]
    assert sizes == sorted(sizes, reverse=True)


def test_the_last_map_of_a_resnet_is_what_its_features_pool(images):
    for made in (backbones.create("cifar_resnet32"), tiny.backbone()):
        features, maps = made.train().stages(images, "student")
        torch.testing.assert_close(maps[-1].mean((2, 3)), features)
        (features.sum() + maps[0].sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_maps_and_features_are_float32_under_bf16_too(images):
    made = backbones.create("cifar_resnet32").eval()
    exact = made.stages(images, "probe")[1]
    made.precision = "bf16"
    features, maps = made.stages(images, "probe")
    assert {features.dtype, *(one.dtype for one in maps)} == {torch.float32}
    assert 0 < (maps[0] - exact[0]).abs().mean() < 0.02 * exact[0].abs().mean()


def test_a_network_without_stages_says_so(images):
    for made in (tiny.transformer(), backbones.create("small_vit")):
        with pytest.raises(UserError, match="'vit_tiny_patch16_224' gives no maps by stage"):
            made.stages(images, "student")
        assert not made.forwarded
    with pytest.raises(UserError, match="no kind"):
        tiny.backbone().stages(images, "diagnosis")
