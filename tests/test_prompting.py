"""Prompts in a frozen transformer, against slow and literal versions of the same."""

import numpy as np
import pytest
import tiny
import torch

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners import prompting

PROMPTERS = [name for name in learners.NAMES if issubclass(learners.find(name), prompting.Prompter)]


@pytest.fixture
def vit():
    return tiny.transformer().eval().requires_grad_(False)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = normal(3, 3, 16, 16)


def embedded(model, images):
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def test_a_prefix_is_keys_and_values_in_front_of_a_block_s_own(vit):
    pair = normal(2, 3, 5, 32)
    model, x = vit.model, embedded(vit.model, IMAGES)
    for index, block in enumerate(model.blocks):
        y, heads = block.norm1(x), []
        q, k, v = block.attn.qkv(y).chunk(3, dim=2)  # (3, 17, 32) each
        if index == 2:
            k, v = torch.cat([pair[0], k], dim=1), torch.cat([pair[1], v], dim=1)
        for one in (slice(0, 16), slice(16, 32)):
            heads.append((q[..., one] @ k[..., one].mT / 4).softmax(2) @ v[..., one])
        x = x + block.attn.proj(torch.cat(heads, dim=2))
        x = x + block.mlp(block.norm2(x))
    with prompting.prefixed(vit, {2: pair}):
        found = vit(IMAGES, "probe")
    torch.testing.assert_close(found, model.norm(x)[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vit(IMAGES, "probe"), atol=1e-2)


def test_prefixes_of_no_length_are_the_plain_transformer_and_nothing_stays(vit):
    plain = vit(IMAGES, "probe")
    with prompting.prefixed(vit, {0: normal(2, 1, 0, 32), 3: normal(2, 3, 0, 32)}):
        assert torch.equal(vit(IMAGES, "probe"), plain)
    with pytest.raises(RuntimeError), prompting.prefixed(vit, {0: normal(2, 7, 1, 32)}):
        vit(IMAGES, "probe")  # 7 prefixes for 3 images
    with pytest.raises(ZeroDivisionError), prompting.prepended(vit, normal(3, 4, 32)):
        raise ZeroDivisionError
    assert torch.equal(vit(IMAGES, "probe"), plain)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in vit.modules())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_prepended_tokens_stand_first_and_their_outputs_average_is_the_feature(pool):
    vit = backbones.create("vit_tiny_patch16_224", 0, tiny.VIT | {"global_pool": pool}).eval()
    tokens, model, lengths = normal(3, 4, 32), vit.model, []
    x = torch.cat([tokens, embedded(model, IMAGES)], dim=1)
    for block in model.blocks:
        x = block(x)
    expected = model.fc_norm(model.norm(x)[:, :4].mean(1))
    model.blocks[-1].register_forward_hook(lambda block, inputs, output: lengths.append(output.shape[1]))
    with prompting.prepended(vit, tokens):
        torch.testing.assert_close(vit(IMAGES, "probe"), expected, atol=1e-5, rtol=1e-5)
    with prompting.prepended(vit, tokens[:, :0]):
        assert torch.equal(vit(IMAGES, "probe"), vit(IMAGES, "probe"))
    assert lengths[0] == 4 + 1 + 16


def test_every_image_keeps_its_own_prompts(vit):
    """Image by image it is the same."""
    pair, tokens = normal(2, 3, 5, 32), normal(3, 4, 32)
    for whole, alone in (
        (prompting.prefixed(vit, {1: pair}), lambda i: prompting.prefixed(vit, {1: pair[:, i, None]})),
        (prompting.prepended(vit, tokens), lambda i: prompting.prepended(vit, tokens[i, None])),
    ):
        with whole:
            found = vit(IMAGES, "probe")
        for i in range(3):
            with alone(i):
                torch.testing.assert_close(vit(IMAGES[i, None], "probe")[0], found[i], atol=1e-5, rtol=1e-5)


def test_the_majority_is_that_of_numpy_and_of_equals_the_first():
    random = np.random.default_rng(0)
    for _ in range(20):
        chosen = np.stack([random.permutation(6)[:3] for _ in range(5)])
        counts = [(chosen == index).sum() for index in range(6)]
        first = sorted(range(6), key=lambda index: (-counts[index], index))[:3]
        found = prompting.majority(torch.from_numpy(chosen), 6)
        assert found.tolist() == [first] * 5


@pytest.mark.parametrize("name", PROMPTERS)
def test_a_query_sees_no_prompt_and_is_asked_for_once_of_each_test_image(name):
    stream = tiny.stream()
    learner = tiny.case(name, epochs=1)
    plain = tiny.transformer().eval()
    for task in stream:
        list(learner.learn(task))
        learner.backbone.train()
        with torch.no_grad():
            assert torch.equal(learner.query(IMAGES), plain(IMAGES, "probe")) and learner.backbone.training
            assert not torch.allclose(learner.embed(IMAGES, "probe"), plain(IMAGES, "probe"), atol=1e-4)
    asked = learner.backbone.forwarded["query"]
    test = stream.test_after(stream[2])
    learner.predict(test)
    again = learner.predict(test)
    assert learner.backbone.forwarded["query"] == asked + len(test)
    with torch.no_grad():
        features = learner.embed(learner.recipe.test(test.images()), "probe")
    np.testing.assert_allclose(again.features, features.numpy(), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), learner.backbone.parameters(), strict=True))


@pytest.mark.parametrize("name", PROMPTERS)
def test_domains_one_after_another(name):
    stream = tiny.domain_stream()
    learner = tiny.case(name, epochs=1)
    for task in stream:
        list(learner.learn(task))
        assert learner.predict(stream.test_after(task)).heads["raw"].shape[1] == 3
    assert learner.backbone.forwarded == learner.declared(stream)


def test_without_alignment_epochs_no_query_is_asked_for_statistics():
    stream = tiny.stream()
    learner = tiny.case("l2p+alignment", align_epochs=0, epochs=1)
    for task in stream:
        list(learner.learn(task))
        learner.predict(stream.test_after(task))
    assert learner.backbone.forwarded == learner.declared(stream)


@pytest.mark.parametrize("whole", [False, True])
def test_the_gradient_is_clipped_with_or_without_the_frozen_backbone_s(whole):
    stream = tiny.stream()
    learner = tiny.case("dualprompt", clip=0.01, clip_backbone=whole, head_start="linear")
    learner.sizes.append(2)
    learner.begin_task(stream[0])
    batch = next(learner.batches(stream[0], 0))
    sum(learner.loss(batch).values()).backward()
    counted = [*learner.trained, *(learner.backbone.parameters() if whole else ())]
    norm = torch.stack([p.grad.norm() for p in counted if p.grad is not None]).norm()
    before = [p.grad.clone() for p in learner.trained]
    learner.before_step(batch)
    for p, grad in zip(learner.trained, before, strict=True):
        torch.testing.assert_close(p.grad, grad * 0.01 / (norm + 1e-6))
    assert norm > 0.01 and all(p.grad is None for p in learner.backbone.parameters())


def test_heads_start_at_zero_or_as_pytorch_s_own():
    stream = tiny.stream()
    for start, most in (("zero", 0.0), ("linear", 32**-0.5)):
        learner = tiny.case("l2p", head_start=start)
        learner.sizes.append(2)
        learner.begin_task(stream[0])
        for value in learner.raw.current.parameters():
            assert value.abs().max() <= most and (most == 0 or value.unique().numel() == value.numel())


def test_bf16_agrees_closely():
    stream = tiny.stream()
    for name in PROMPTERS:
        learner = tiny.case(name, epochs=1)
        list(learner.learn(stream[0]))
        with torch.no_grad():
            full = learner.embed(IMAGES, "probe")
            learner.backbone.precision = "bf16"
            half = learner.embed(IMAGES, "probe")
        assert half.dtype == torch.float32 and not torch.equal(full, half)
        assert (full - half).norm() < 0.05 * full.norm()
        learner.loss(next(learner.batches(stream[0], 0)))["classification"].backward()
        assert all(torch.isfinite(p.grad).all() for p in learner.trained if p.grad is not None)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"blocks \[0, 9\] do not fit.*0 … 3"):
        tiny.case("dualprompt", general_layers=(0,), expert_layers=(9,))
    with pytest.raises(UserError, match="takes no prompts"):
        prompting.check_layers(backbones.create("vit_relpos_small_patch16_224", 0, {"depth": 1}), (0,))
    with pytest.raises(UserError, match="each takes one prefix"):
        learners.settings("dualprompt", {"general_layers": (0, 1), "expert_layers": (1, 2)})
    with pytest.raises(UserError, match="0 … 10 prompts"):
        learners.settings("l2p", {"chosen": 11})
    with pytest.raises(UserError, match="even length"):
        learners.settings("coda_prompt", {"length": 3})
    with pytest.raises(UserError, match="'zero' or 'linear'"):
        learners.settings("l2p", {"head_start": "one"})
    with pytest.raises(UserError, match="0 for no clipping"):
        learners.settings("l2p", {"clip": -1.0})
