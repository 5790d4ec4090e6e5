"""LwM: the attention loss, its gradient to second order, and what it changes (specs, part C)."""

import math

import pytest
import tiny
import torch
from tiny import learn

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners.lwm import grad_cam

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "slow_rate": 1.0}
NETWORKS = {"convolutional": tiny.backbone, "transformer": tiny.transformer}


def create(name="lwm", network=tiny.backbone, **hyper):
    return learners.create(name, network(), seed=0, **{**SMALL, **hyper})


def start_second_task(stream, network=tiny.backbone, name="lwm", **hyper):
    learner = learn(create(name, network, **hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner, next(learner.batches(stream[1], 0))


def doubled(learner, batch):
    """Learner, teacher and images in float64 and eval mode."""
    for part in (learner.backbone, learner.raw, learner.teacher.network, learner.teacher.heads):
        part.double().eval()
    return batch.images.double()


def attention(learner, images):
    return learner.distillation(learner.read(learner.trunk(images)), learner.taught(images))["attention"]


def nudge(learner, seed=0, size=0.02):
    """The student, a little way off from its teacher."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in [*learner.backbone.parameters(), *learner.raw.parameters()]:
            weight += size * torch.randn(weight.shape, generator=random, dtype=weight.dtype)


# ------------------------------------------------------------ maps


@pytest.mark.parametrize(
    "arch", ["small_resnet", "small_vit", "mobilenetv3_small_050", "convnext_atto", "deit_tiny_distilled_patch16_224"]
)
def test_a_pass_in_two_parts_is_the_whole_pass_and_counted_once(arch):
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} if "deit" in arch else {}
    network = backbones.create(arch, 0, small).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = network.rest(network.maps(images, "student"))
        torch.testing.assert_close(parts, network(images, "test"), rtol=1e-5, atol=1e-6)
    assert network.forwarded == {"student": 3, "test": 3}


def test_a_network_without_maps_is_refused():
    network = backbones.create("eva02_tiny_patch14_224", 0, {"img_size": 28, "depth": 1})
    with pytest.raises(UserError, match=r"ends in \(1, 5, 192\), not in maps"):
        network.maps(torch.zeros(1, 3, 28, 28), "student")


def test_a_map_is_grad_cam_of_each_image_s_own_class_written_out():
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3, 2, 2, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, generator=random, dtype=torch.float64)
    logits = maps.square().mean((2, 3)) @ weight.T  # d z_b / d A_k at a place: weight_bk 2 A_k / 4
    chosen = torch.tensor([4, 0, 2, 0])
    found = grad_cam(logits, maps, chosen)
    for image, label, values in zip(maps.tolist(), chosen.tolist(), found.tolist(), strict=True):
        rows = [sum(channel, []) for channel in image]  # channels of four places
        alpha = [sum(w * 2 * a / 4 for a in row) / 4 for w, row in zip(weight[label].tolist(), rows, strict=True)]
        looked = [max(0.0, sum(alpha[k] * rows[k][j] for k in range(3))) for j in range(4)]
        length = math.sqrt(sum(v * v for v in looked)) or 1.0
        assert values == pytest.approx([v / length for v in looked], abs=1e-12)


def test_tokens_without_a_place_are_left_out():
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 3, generator=random, dtype=torch.float64, requires_grad=True)
    logits = (tokens.square() * torch.arange(1.0, 6)[:, None]).sum((1, 2))[:, None]
    slopes = (2 * tokens * torch.arange(1.0, 6)[:, None])[:, 1:].mean(1, keepdim=True)
    looked = (slopes * tokens[:, 1:]).sum(2).clamp_min(0)
    found = grad_cam(logits, tokens, torch.zeros(2, dtype=torch.int64), prefix=1)
    torch.testing.assert_close(found, looked / looked.norm(dim=1, keepdim=True).clamp_min(1e-12))
    assert found.shape == (2, 4)


def test_a_map_that_is_nowhere_above_zero_is_zeros_and_moves_nothing():
    maps = torch.ones(2, 3, 4, 4, requires_grad=True)
    weight = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    found = grad_cam(maps.mean((2, 3)) @ weight.T, maps, torch.zeros(2, dtype=torch.int64))
    assert not found.any()
    for grad in torch.autograd.grad((found - 0.25).abs().sum(), [maps, weight]):
        assert torch.equal(grad, torch.zeros_like(grad))


# ------------------------------------------------------------ the loss


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_loss_is_zero_for_the_same_network_and_written_out_for_another(network, stream):
    learner, batch = start_second_task(stream, network, attention=0.5)
    images = doubled(learner, batch)
    assert attention(learner, images).item() < 1e-12
    nudge(learner)
    found, total = attention(learner, images).item(), 0.0
    teacher, known = learner.teacher, 2
    for image in images:  # one by one
        looks, best = [], None
        for one, heads in ((teacher.network, teacher.heads), (learner.backbone, learner.raw)):
            maps = one.maps(image[None], "probe").detach().requires_grad_()
            logits = heads(one.rest(maps))[0, :known]
            best = int(logits.argmax()) if best is None else best  # the teacher's, for both
            (slopes,) = torch.autograd.grad(logits[best], maps)
            if maps.ndim == 3:  # the class token has no place
                maps, slopes = (value[:, 1:].transpose(1, 2)[..., None] for value in (maps, slopes))
            look = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).clamp_min(0).flatten()
            looks.append(look / look.norm() if look.any() else look)
        total += (looks[0] - looks[1]).abs().sum().item()
    assert total > 0.01 and found == pytest.approx(0.5 * total / len(images), rel=1e-9)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_its_gradient_is_that_of_finite_differences(network, stream):
    learner, batch = start_second_task(stream, network, old_heads="trained")
    images = doubled(learner, batch)
    nudge(learner)
    weights = [*learner.backbone.parameters(), *learner.raw.tasks[0].parameters()]
    grads = torch.autograd.grad(attention(learner, images), weights, allow_unused=True, materialize_grads=True)
    random = torch.Generator().manual_seed(1)
    for part in (range(len(weights) - 2), [len(weights) - 2]):  # the backbone's; the old head's, by alpha alone
        ways = {i: torch.randn(weights[i].shape, generator=random, dtype=torch.float64) for i in part}
        slope, step, values = sum((ways[i] * grads[i]).sum().item() for i in part), 1e-8, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for i, way in ways.items():
                    weights[i] += sign * step * way
            values.append(attention(learner, images).item())
        assert abs(slope) > 1e-4
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


def test_the_second_order_is_there():
    """Where alpha depends on the maps, a gradient that takes it for constant is another one."""
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 2, 2, generator=random, dtype=torch.float64, requires_grad=True)
    classes, target = torch.zeros(2, dtype=torch.int64), torch.full((2, 4), 0.5, dtype=torch.float64)

    def loss(values):
        return (grad_cam(values.pow(3).sum((1, 2, 3))[:, None], values, classes) - target).abs().sum()

    (whole,) = torch.autograd.grad(loss(maps), maps)
    alpha = 3 * maps.detach().square().mean((2, 3), keepdim=True)
    first = torch.nn.functional.normalize((alpha * maps).sum(1).flatten(1))
    (part,) = torch.autograd.grad((first - target).abs().sum(), maps)
    assert (whole - part).abs().max() > 0.05
    assert torch.autograd.gradcheck(loss, maps)


def test_both_networks_are_asked_about_the_class_that_the_teacher_scores_highest(stream):
    learner, batch = start_second_task(stream)
    with torch.no_grad():
        learner.raw.tasks[0].bias.copy_(torch.tensor([-50.0, 50.0]))  # the student would say 1 of everything
        learner.teacher.heads.tasks[0].bias.copy_(torch.tensor([50.0, -50.0]))
    asked, own = [], learner.map
    learner.map = lambda logits, maps, classes: (asked.append(classes), own(logits, maps, classes))[1]
    learner.loss(batch)
    assert len(asked) == 2 and not asked[0].any() and torch.equal(*asked)


def test_the_teacher_s_reading_has_no_gradient_and_the_student_learns_in_training_mode(stream):
    learner, batch = start_second_task(stream)
    learner.backbone.learning("batch")
    modes, own = {}, type(learner.backbone).maps

    class Watched(type(learner.backbone)):
        def maps(self, images, kind):
            modes[kind] = self.training
            return own(self, images, kind)

    learner.backbone.__class__ = learner.teacher.network.__class__ = Watched
    sum(learner.loss(batch).values()).backward()
    assert modes == {"student": True, "teacher": False}
    assert not any(value.requires_grad for value in learner.taught(batch.images))
    assert all(weight.grad is None for weight in learner.teacher.network.parameters())


# ------------------------------------------------------------ what it changes


def after_one_step(stream, network=tiny.backbone, **hyper):
    learner, batch = start_second_task(stream, network, **hyper)
    nudge(learner)
    optimiser, _ = learner.optimiser(stream[1])
    sum(learner.loss(batch).values()).backward()
    optimiser.step()
    return torch.cat([weight.detach().flatten() for weight in learner.backbone.parameters()])


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_gamma_changes_the_weights_unless_its_gradient_is_cut_off(network, stream):
    weak, strong = (after_one_step(stream, network, attention=gamma) for gamma in (1.0, 2.0))
    assert (weak - strong).abs().max() > 1e-6
    cut = {"leaks": ("no_attention_gradient",)}
    weak, strong = (after_one_step(stream, network, attention=gamma, **cut) for gamma in (1.0, 2.0))
    assert torch.equal(weak, strong)


def test_without_attention_it_is_lwf_bit_for_bit(stream):
    ours, lwf = learn(create(attention=0.0), stream), learn(create("lwf"), stream)
    for name, value in lwf.state().items():
        assert torch.equal(ours.state()[name], value), name


def test_attention_keeps_the_old_maps(stream):
    longer, moved = {"epochs": 24, "milestones": (20,), "distillation": 0.0}, []
    first = learn(create(**longer), stream[:1])
    for gamma in (1e-6, 1.0):
        learner = create(attention=gamma, norm_statistics="frozen", **longer | {"slow_rate": 0.01})
        learner.load(first.state())
        for moment in learner.learn(stream[1]):
            if moment.epoch == 23:
                learner.backbone.eval()
                images = learner.recipe.test(stream[1].train.images(), learner.backbone.device)
                moved.append(attention(learner, images).item() / gamma)
    assert moved[1] < moved[0] / 2


def test_it_goes_with_alignment_and_with_synthetic_replay(stream):
    for name in ("lwm+alignment", "lwm+synthetic_replay"):
        images = {"images": tiny.image_set(seed=7)} if "replay" in name else {}
        learner = learn(learners.create(name, tiny.backbone(), seed=0, **SMALL, **images), stream[:2])
        assert learner.declared(stream[:2])["student"] == learner.backbone.forwarded["student"]


def test_it_counts_what_it_declares_on_a_transformer(stream):
    learner = create(network=tiny.transformer)
    for task in stream:
        learn(learner, [task])
        learner.predict(stream.test_after(task))
    assert learner.declared(stream) == dict(learner.backbone.forwarded)


def test_wrong_settings_are_refused():
    for bad in ({"attention": -1.0}, {"slow_rate": 0.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            create(**bad)
    assert learners.settings("lwm", {"recipe_of": "facil"})["leaks"] == ("no_attention_gradient",)
