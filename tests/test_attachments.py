import pytest
import torch
from torch.nn import functional as F

from cilkit import attachments, backbones
from cilkit.errors import UserError

TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")
MAKERS = {
    "lora": lambda vit: attachments.lora(vit, "part", 3, TARGETS, scale=0.8, seed=1),
    "lora svd": lambda vit: attachments.lora(vit, "part", 3, TARGETS, start="svd"),
    "adapter": lambda vit: attachments.adapter(vit, "part", bottleneck=5, seed=1),
    "prompts": lambda vit: attachments.prompts(vit, "part", length=3, seed=1),
    "deep prompts": lambda vit: attachments.prompts(vit, "part", length=3, deep=True, seed=1),
    "ssf": lambda vit: attachments.ssf(vit, "part", std=0.0, seed=1),
}


@pytest.fixture
def vit():
    return backbones.create("small_vit", model_args={"depth": 2, "embed_dim": 48}).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(backbone, images):
    with torch.no_grad():
        return backbone(images, "probe")


def shake(part):
    """Other values in every parameter, as training would leave them."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_model_is_not_edited_and_detaching_gives_it_back(vit, images, kind):
    names, before = list(vit.model.state_dict()), features(vit, images)
    part = MAKERS[kind](vit)
    assert list(vit.model.state_dict()) == names
    assert torch.equal(features(vit, images), before) is ("prompts" not in kind)
    shake(part)
    assert not torch.allclose(features(vit, images), before, atol=1e-3)
    attachments.detach(vit, "part")
    assert torch.equal(features(vit, images), before) and not vit.attached
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.model.modules())


@pytest.mark.parametrize("kind", MAKERS)
def test_only_the_attachment_learns_where_the_model_is_frozen(vit, images, kind):
    vit.requires_grad_(False)
    part = MAKERS[kind](vit)
    vit(images, "student").square().sum().backward()
    assert all(p.grad is None for p in vit.model.parameters())
    zero_at_first = {"lora": ".B", "lora svd": ".B", "adapter": "up.weight"}.get(kind, "")
    learning = {name for name, p in part.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning and {name for name, _ in part.named_parameters() if name.endswith(zero_at_first)} <= learning


@pytest.mark.parametrize("kind", MAKERS)
def test_a_teacher_keeps_its_own_copy(vit, images, kind):
    part = MAKERS[kind](vit)
    shake(part)
    before = features(vit, images)
    teacher = vit.frozen_copy()
    shake(part)
    assert torch.equal(features(teacher, images), before) and not torch.equal(features(vit, images), before)
    attachments.detach(teacher, "part")
    assert "part" in vit.attached and not torch.equal(features(teacher, images), before)


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_and_loaded_beside_the_weights(vit, images, kind, tmp_path):
    plain = tmp_path / "plain"
    backbones.save(vit, plain)
    shake(MAKERS[kind](vit))
    backbones.save(vit, tmp_path / "attached")
    assert not (plain / backbones.ATTACHED).exists()
    assert (plain / backbones.WEIGHTS).read_bytes() == (tmp_path / "attached" / backbones.WEIGHTS).read_bytes()
    again = backbones.load(tmp_path / "attached").eval()
    assert torch.equal(features(again, images), features(vit, images))
    assert again.attached["part"].facts == vit.attached["part"].facts


def test_lora_is_the_sum_of_two_weights(vit, images):
    part = attachments.lora(vit, "part", 2, ("mlp.fc1",), scale=0.8)
    shake(part)
    expected = features(vit, images)
    attachments.detach(vit, "part")
    with torch.no_grad():
        for block, low in zip(vit.model.blocks, part.layers, strict=True):
            block.mlp.fc1.weight += 0.8 * low.B @ low.A
    torch.testing.assert_close(features(vit, images), expected, atol=1e-5, rtol=0)


def test_lora_may_start_in_the_directions_that_the_weight_uses_most(vit):
    part = attachments.lora(vit, "part", 3, ("attn.qkv",), start="svd")
    for block, low in zip(vit.model.blocks, part.layers, strict=True):
        used = (block.attn.qkv.weight @ low.A.T).norm(dim=0)
        values = torch.linalg.svdvals(block.attn.qkv.weight)[:3]
        torch.testing.assert_close(used, values, atol=1e-4, rtol=0)


def test_the_adapter_is_parallel_to_the_mlp(vit, images):
    part = attachments.adapter(vit, "part", bottleneck=4, scale=0.1)
    shake(part)
    expected = features(vit, images)
    attachments.detach(vit, "part")
    model = vit.model
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        for block, beside in zip(model.blocks, part.layers, strict=True):
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp(block.norm2(x)) + 0.1 * beside.up(F.relu(beside.down(x)))
        found = model.norm(x)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_stand_behind_the_class_token_and_leave_no_token_behind(vit, images, deep):
    part = attachments.prompts(vit, "part", length=3, deep=deep)
    expected = features(vit, images)
    assert vit.model.forward_features(images).shape == (2, 65, 48)
    attachments.detach(vit, "part")
    model = vit.model
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        for i, block in enumerate(model.blocks):
            if deep or i == 0:
                tokens = part.layers[i].tokens.expand(2, -1, -1)
                x = torch.cat([x[:, :1], tokens, x[:, 4 if deep and i else 1 :]], dim=1)  # the old ones are replaced
            x = block(x)
        found = model.norm(x)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_ssf_is_another_weight_bias_and_norm_in_every_place(vit, images):
    """Scale and shift can be merged into what comes before them (the paper's re-parameterisation)."""
    part = attachments.ssf(vit, "part", seed=3)
    expected = features(vit, images)
    model, kinds = vit.model, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm)
    attachments.detach(vit, "part")
    assert not torch.allclose(features(vit, images), expected, atol=1e-3)
    places = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    of_a_block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in of_a_block]
    assert [name for name, _ in places] == ["patch_embed.proj", *blocks, "norm"]
    with torch.no_grad():
        for (_, module), layer in zip(places, part.layers, strict=True):
            module.weight *= layer.scale.view(-1, *[1] * (module.weight.ndim - 1))
            module.bias.mul_(layer.scale).add_(layer.shift)
    torch.testing.assert_close(features(vit, images), expected, atol=1e-5, rtol=0)
    scales, shifts = (torch.cat([getattr(one, which) for one in part.layers]) for which in ("scale", "shift"))
    assert abs(scales.mean() - 1) < 0.002 and abs(shifts.mean()) < 0.002
    assert abs(scales.std() - 0.02) < 0.002 and abs(shifts.std() - 0.02) < 0.002


@pytest.mark.parametrize("arch", ["small_resnet", "convnext_atto"])
def test_ssf_takes_channels_where_a_convnet_has_them(arch):
    convnet = backbones.create(arch).eval()
    some = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = features(convnet, some)
    part = attachments.ssf(convnet, "part", std=0.0)
    assert torch.equal(features(convnet, some), before)
    shake(part)
    assert not torch.allclose(features(convnet, some), before, atol=1e-3)


def test_seeds_decide_and_names_are_checked(vit):
    draws = []
    for seed in (0, 0, 1):
        part = attachments.lora(vit, "part", 2, seed=seed)
        draws.append(part.layers[0].A.detach().clone())
        attachments.detach(vit, "part")
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    attachments.lora(vit, "part")
    with pytest.raises(UserError, match="name of its own"):
        attachments.adapter(vit, "part")
    with pytest.raises(UserError, match="carries part"):
        attachments.detach(vit, "other")
    with pytest.raises(UserError, match="'attn.query'.*attn.qkv"):
        attachments.lora(vit, "more", targets=("attn.query",))
    with pytest.raises(UserError, match="rank 49"):
        attachments.lora(vit, "more", rank=49)
    with pytest.raises(UserError, match="no transformer blocks"):
        attachments.prompts(backbones.create(), "more")
    assert list(vit.attached) == ["part"]
