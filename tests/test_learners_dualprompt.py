"""DualPrompt: its acceptance tests (specs, section 13)."""

import pytest
import tiny
import torch

from cilkit import backbones, learners
from cilkit.learners import prompting


@pytest.fixture
def arrived(monkeypatch):
    """What attention is given: (block, keys, values) of every call."""
    calls, attend = [], prompting.attend

    def spy(attention, keys, values, x):
        calls.append((attention, keys, values))
        return attend(attention, keys, values, x)

    monkeypatch.setattr(prompting, "attend", spy)
    return calls


def begun(tasks=1, **hyper):
    stream = tiny.stream(increments=1)
    learner = tiny.case("dualprompt", **hyper)
    for index in range(tasks):
        learner.sizes.append(1)
        learner.begin_task(stream[index])
    return learner, next(learner.batches(stream[tasks - 1], 0))


@pytest.mark.parametrize(("length", "count"), [(5, 230_400), (20, 921_600)])
def test_as_many_parameters_as_the_paper_s(length, count):
    with torch.device("meta"):
        backbone = backbones.create("vit_base_patch16_224")
    learner = learners.create("dualprompt", backbone, expert_layers=(2, 3, 4), expert_length=length)
    stream = tiny.stream(classes=10, increments=1)
    for task in stream:
        learner.sizes.append(1)
        learner.begin_task(task)
    counts = {name: sum(p.numel() for p in learner.of_tasks(name)) for name in ("expert", "key")}
    assert counts == {"expert": count, "key": 7_680} and learner.prompts["general"].numel() == 15_360


def test_what_stands_in_each_slot_arrives_at_its_image_block_and_role(arrived):
    learner, batch = begun(tasks=3)
    experts = torch.stack(learner.of_tasks("expert"))  # (tasks, layers, 2, length, dim)
    codes = torch.arange(12.0).reshape(3, 2, 2, 1, 1).expand_as(experts)  # 4 slot + 2 layer + role
    for slot, values in zip(learner.of_tasks("expert"), codes, strict=True):
        slot.data.copy_(values)
    learner.prompts["general"].data.copy_(100 + torch.arange(4.0).reshape(2, 2, 1, 1).expand(2, 2, 5, 32))
    slots = torch.tensor([2, 0, 1, 2, 1, 0, 0, 2])
    learner.choose = lambda queries: slots
    with torch.no_grad():
        learner.embed(batch.images, "test")
    assert [call[0] for call in arrived] == [block.attn for block in learner.backbone.model.blocks]
    for layer, (_, keys, values) in enumerate(arrived[:2]):
        assert (keys == 100 + 2 * layer).all() and (values == 101 + 2 * layer).all()
    for layer, (_, keys, values) in enumerate(arrived[2:]):
        assert torch.equal(keys, (4.0 * slots + 2 * layer)[:, None, None].expand(8, 5, 32))
        assert torch.equal(values, keys + 1)


def test_the_leak_gives_half_the_batch_keys_for_values_and_the_other_half_values_for_keys(arrived):
    learner, batch = begun(leaks=("kv_reshape",))
    learner.of_tasks("expert")[0].data.copy_(torch.arange(2.0).reshape(1, 2, 1, 1).expand(2, 2, 5, 32))
    learner.loss(batch)
    for _, keys, values in arrived[2:]:
        assert keys[:, 0, 0].tolist() == values[:, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4


def test_a_slot_starts_where_the_one_before_ended_and_its_key_does_not():
    stream = tiny.stream()
    learner = tiny.case("dualprompt")
    list(learner.learn(stream[0]))
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    old, new = learner.of_tasks("expert")
    assert torch.equal(old, new) and old is not new and not torch.equal(*learner.of_tasks("key"))
    before = old.detach().clone()
    learner.sizes.pop()
    del learner.prompts["expert.1"], learner.prompts["key.1"]
    learner.raw.tasks = learner.raw.tasks[:1]
    list(learner.learn(stream[1]))
    old, new = learner.of_tasks("expert")
    assert torch.equal(old, before) and not torch.equal(new, before)


def test_a_task_trains_its_own_slot_and_the_general_prompts():
    learner, batch = begun(tasks=3, head_start="linear")
    for slot, key in enumerate(learner.of_tasks("key")):  # every query is nearest to slot 0
        key.data.copy_(learner.query(batch.images).mean(0) if slot == 0 else -learner.query(batch.images).mean(0))
    assert (learner.choose(learner.query(batch.images)) == 0).all()
    terms = learner.loss(batch)
    sum(terms.values()).backward()
    learning = {name for name, p in learner.prompts.items() if p.grad is not None and p.grad.abs().sum() > 0}
    # One class in the task: its cross-entropy is 0, so that the key alone is pulled.
    assert learning == {"key.2"} and terms["pull"] > 0.9
    learner.raw(learner.with_experts(batch.images, slot_of(learner, 2, len(batch.images)), "student"))[
        :, 2
    ].sum().backward()
    learning = {name for name, p in learner.prompts.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == {"key.2", "expert.2", "general"}


def slot_of(learner, task, batch):
    return learner.of_tasks("expert")[task][:, :, None].expand(-1, -1, batch, -1, -1)


def test_only_a_leak_votes():
    learner, batch = begun(tasks=2)
    leaking, _ = begun(tasks=2, leaks=("batch_vote",))
    with torch.no_grad():
        queries = learner.query(batch.images)
        for one in (learner, leaking):
            for key, query in zip(one.of_tasks("key"), (queries - queries.mean(0))[:2], strict=True):
                key.copy_(query)
        slots = learner.choose(queries)
        assert slots.unique().tolist() == [0, 1]
        assert (leaking.choose(queries) == slots.mode().values).all()
