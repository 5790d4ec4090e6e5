"""bf16, fused optimisers, compilation and steps that never wait."""

import copy
import dataclasses
import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from cilkit import attachments, backbones, precision
from cilkit.errors import UserError
from cilkit.learners import Batch

CPU = torch.device("cpu")


class Net(nn.Module):
    """A model with what Backbone asks of timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.fixture
def dynamo():
    """torch.compile as torch has it by default, and nothing left of it afterwards."""
    import torch._dynamo

    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


def test_float32_changes_no_bit_and_bf16_rounds_products_only():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 8)
    plain = net(x)
    with precision.autocast("float32", CPU):
        assert torch.equal(net(x), plain)
    with precision.autocast("bf16", CPU):
        half = net(x)
    assert half.dtype == torch.bfloat16
    literal = torch.tanh(x.bfloat16() @ net.first.weight.bfloat16().T + net.first.bias.bfloat16())
    literal = literal @ net.second.weight.bfloat16().T + net.second.bias.bfloat16()
    torch.testing.assert_close(half, literal, atol=2e-2, rtol=2e-2)
    assert not torch.equal(half.float(), plain)


def test_gradients_of_a_bf16_pass_are_float32_and_close():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(64, 8)
    gradients = []
    for how in precision.PRECISIONS:
        net.zero_grad()
        with precision.autocast(how, CPU):
            y = net(x)
        y.float().square().mean().backward()
        gradients.append(net.first.weight.grad.clone())
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_an_unknown_precision_is_one_sentence():
    with pytest.raises(UserError, match="'fp16'; expected one of float32, bf16"):
        precision.prepare(backbones.create("small_vit"), "fp16")


def test_prepare_sets_the_precision_of_a_backbone():
    backbone = backbones.create("small_vit", seed=0)
    assert precision.prepare(backbone, "bf16") is backbone and backbone.precision == "bf16"
    assert precision.attention_without_sdpa(backbone.model) == []
    backbone.model.blocks[1].attn.fused_attn = False
    assert precision.attention_without_sdpa(backbone.model) == ["blocks.1.attn"]


@pytest.mark.parametrize(("arch", "parts"), [("", ["model"]), ("small_vit", [f"model.blocks.{i}" for i in range(4)])])
def test_what_is_compiled_keeps_its_names_and_its_copies_are_plain(arch, parts, dynamo):
    backbone = backbones.create(arch)
    names = list(backbone.state_dict())
    precision.prepare(backbone, compile=True)
    assert [name for name, module in backbone.named_modules() if module._compiled_call_impl is not None] == parts
    assert list(backbone.state_dict()) == names
    assert all(module._compiled_call_impl is None for module in backbone.frozen_copy().modules())


def test_what_hooks_in_after_compilation_is_not_left_out(monkeypatch, dynamo):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compiled(call, backend="eager"))
    plain, images = backbones.create("small_vit"), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = precision.prepare(copy.deepcopy(plain), compile=True)
    before = plain(images, "test")
    torch.testing.assert_close(backbone(images, "test"), before)
    for one in (plain, backbone):
        part = attachments.lora(one, "lora", rank=2)
        for parameter in part.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    after = plain(images, "test")
    torch.testing.assert_close(backbone(images, "test"), after)
    assert not torch.allclose(after, before, atol=0.1)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_on_a_cpu_the_optimisers_are_torchs_own_bit_for_bit(name):
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    settings = {"lr": 0.1, "weight_decay": 0.01}
    torch.manual_seed(0)
    ours, x = Net(), torch.randn(9, 8)
    theirs = copy.deepcopy(ours)
    optimisers = getattr(precision, name)(ours.parameters(), CPU, **settings), plain(theirs.parameters(), **settings)
    for _ in range(3):
        for net, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            net(x).square().sum().backward()
            optimiser.step()
    assert type(optimisers[0]) is plain
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_on_a_gpu_they_are_fused(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.optim, "SGD", lambda groups, **settings: asked.update(settings))
    precision.sgd([], torch.device("cuda"), lr=0.1)
    assert asked == {"fused": True, "lr": 0.1}


def test_on_a_cpu_a_batch_is_prepared_as_it_is():
    assert precision.on_own_stream(len, CPU) is len


def test_on_a_gpu_a_batch_is_complete_and_kept_from_reuse(monkeypatch):
    happened = []

    class Stream:
        def __init__(self, device) -> None:
            self.device = device

        def synchronize(self) -> None:
            happened.append("complete")

    @contextmanager
    def inside(stream):
        happened.append("begin")
        yield
        happened.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "main")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: happened.append((stream, len(tensor))))

    def prepare(n):
        happened.append("prepare")
        return Batch(torch.zeros(n, 3), torch.zeros(n))

    batch = precision.on_own_stream(prepare, torch.device("cuda"))(5)
    assert len(batch.images) == 5
    assert happened == ["begin", "prepare", "end", "complete", ("main", 5), ("main", 5)]


def test_a_training_step_never_waits():
    net, x = Net(), torch.randn(6, 8)
    optimiser = precision.sgd(net.parameters(), CPU, lr=0.1, momentum=0.9)
    rows = torch.tensor([0, 3])
    with precision.no_waiting():
        loss = nn.functional.cross_entropy(net(x)[rows], torch.tensor([1, 2]))
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: float(t.sum()),
        lambda t: bool((t > 0).any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.masked_select(t > 0),
        lambda t: t.index_put_((t > 0,), torch.zeros(())),
        lambda t: t.unique(),
    ],
)
def test_what_waits_is_named(wait):
    tensor = torch.randn(4, 4)
    with pytest.raises(RuntimeError, match="waits for the device"), precision.no_waiting():
        wait(tensor)
    wait(tensor)  # outside, nothing is watched


def test_the_gpu_script_runs_at_toy_size(monkeypatch, capsys):
    gpu = load_script("perf/gpu.py")
    small = dataclasses.replace(gpu.TINY, train_images=4, test_images=2, steps=1)
    monkeypatch.setattr(gpu, "TINY", small)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny"])
    gpu.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == "gpu_step" and last["value"] > 0 and set(last["slca_minutes"]) == {"bf16"}


def test_what_the_gpu_script_counts():
    """Products and operations of the step, against the transformer's sizes by hand."""
    gpu, backbone = load_script("perf/gpu.py"), backbones.create("small_vit")
    batch, size, dim, depth = 2, 32, backbone.dim, len(backbone.blocks)
    patch = backbone.model.patch_embed.patch_size[0]
    patches = batch * (size // patch) ** 2
    rows = patches + batch  # the class token
    shapes = {(rows, dim, 3 * dim, True): depth, (rows, dim, dim, True): depth, (rows, dim, 4 * dim, True): depth}
    shapes |= {(rows, 4 * dim, dim, True): depth, (patches, 3 * patch**2, dim, False): 1}
    assert gpu.products(backbone, batch, size) == shapes
    linear = sum(2 * n * i * o * count * (3 if needs else 2) for (n, i, o, needs), count in shapes.items())
    attention = depth * 3 * 2 * 2 * rows * (rows // batch) * dim  # queries by keys and weights by values, 3 times
    assert gpu.step_operations(backbone, batch, size) == linear + attention


def load_script(path):
    """A script as a module."""
    file = Path(__file__).resolve().parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module
