"""What is kept, by every learner with herded exemplars and under both protocols of the papers, however it is measured:
so many a class, so many in all, or bytes. Stores that are not herded stand beside them."""

import math
from collections import Counter

import pytest
import tiny
import torch

import cilkit
from cilkit import learners
from cilkit.data import Benchmark, ImageSet, Stream, benchmarks
from cilkit.errors import UserError
from cilkit.incremental import run_stream
from cilkit.learners.masked_memory import joined
from cilkit.learners.rehearsal import Rehearsal

HERDING = [name for name in learners.NAMES if issubclass(learners.find(name), Rehearsal)]
PROTOCOLS = {"B0": {"increment": 2}, "B50": {"base": 3, "increment": 1}}
IMAGES = 8  # a class


@pytest.fixture(params=PROTOCOLS)
def cut(request, monkeypatch) -> Stream:
    """Six classes, cut as B0 is or, half of them first, as B50."""
    tiny_one = Benchmark("tiny", tiny.image_set(), tiny.image_set(per_class=2, seed=1))
    monkeypatch.setattr(benchmarks, "load", lambda name: tiny_one)
    made = cilkit.stream("tiny", **PROTOCOLS[request.param])
    assert [task.seen for task in made] == {"B0": [2, 4, 6], "B50": [3, 4, 5, 6]}[request.param]
    return made


def case(name, **memory):
    return tiny.case(name, epochs=1, **memory)


def followed(learner, stream) -> list[list[int]]:
    """Exemplars of each class, after every task; the learner is tested and counted as a run does it."""
    kept = []
    for task in stream:
        tiny.learn(learner, [task])
        learner.predict(stream.test_after(task))
        kept.append([len(rows) for rows in learner.memory.rows])
        assert learner.stored_bytes()["exemplars"] == learner.memory.bytes
        if learner.hyper.budget:
            assert learner.memory.bytes <= learner.hyper.budget
    assert +Counter(learner.declared(stream)) == learner.backbone.forwarded
    return kept


@pytest.mark.parametrize("name", HERDING)
def test_a_budget_is_filled_to_an_exemplar_a_class_and_never_exceeded(name, cut):
    each = case(name).bytes_each(cut.train)
    budget = 16 * each - 1
    kept = followed(case(name, budget=budget), cut)
    for task, counts in zip(cut, kept, strict=True):
        assert len(counts) == task.seen and len(set(counts)) == 1
        assert 0 <= budget - sum(counts) * each < task.seen * each


@pytest.mark.parametrize("memory", [{"per_class": 3}, {"total": 10}, {"budget": 10**6}], ids=str)
def test_exemplars_are_so_many_a_class_a_share_of_the_total_or_all_that_there_are(memory, cut):
    room = {"per_class": lambda seen: 3, "total": lambda seen: math.ceil(10 / seen), "budget": lambda seen: IMAGES}
    (measure,) = memory
    expected = [[room[measure](task.seen)] * task.seen for task in cut]
    assert followed(case("icarl", **memory), cut) == expected


def test_a_budget_goes_before_a_total_and_counts_the_bytes_of_a_masked_exemplar(cut):
    learner = case("mae_cil", budget=16 * 768, total=6)
    assert learner.memory.each < 768
    kept = followed(learner, cut)
    assert kept[-1] == [IMAGES] * 6  # of whole images there would be 2


@pytest.mark.parametrize("name", HERDING)
def test_a_budget_too_small_is_one_sentence_before_the_task_is_learnt(name, stream):
    each = case(name).bytes_each(stream.train)
    learner = case(name, budget=6 * each - 1)
    sentence = (
        f"^budget {6 * each - 1} holds no exemplar of {each} bytes for each of 6 classes; give at least {6 * each}$"
    )
    with pytest.raises(UserError, match=sentence):
        learner.declared(stream)
    tiny.learn(learner, stream[:2])
    with pytest.raises(UserError, match=sentence):
        next(learner.learn(stream[2]))
    tiny.learn(case(name, budget=6 * each), stream)


def two_sizes(first: int) -> Benchmark:
    """Classes 0 … 2 in images of `first` x `first` pixels, the others in 16 x 16 or, where these are those, 32 x 32."""
    parts = []
    for images in (tiny.image_set(), tiny.image_set(per_class=2, seed=1)):
        sides = {16: images.images(), 32: images.images().repeat(2, 1).repeat(2, 2)}
        sets = {side: ImageSet.from_arrays(sides[side], images.labels, images.class_names) for side in sides}
        early, late = images.labels < 3, images.labels >= 3
        parts.append(joined(sets.pop(first).select(early), sets.popitem()[1].select(late)))
    return Benchmark("two sizes", *parts)


@pytest.mark.parametrize("first", [16, 32])
def test_where_sizes_differ_a_budget_holds_the_largest_image_and_is_not_exceeded(first):
    made = Stream(two_sizes(first), order_seed=None, increments=3)
    kept = followed(case("icarl", budget=18 * 32 * 32 * 3, recipe="lucir_cifar", image_size=16), made)
    assert kept == [[6] * 3, [3] * 6]


def test_a_learner_loaded_at_a_boundary_keeps_to_its_budget(stream):
    whole = tiny.learn(case("icarl", budget=12 * 768), stream)
    first = tiny.learn(case("icarl", budget=12 * 768), stream[:2])
    again = case("icarl", budget=12 * 768)
    again.load({name: value.clone() for name, value in first.state().items()})
    ours = tiny.learn(again, [stream[2]]).state()
    assert all(torch.equal(ours[name], value) for name, value in whole.state().items())


def test_a_reservoir_and_a_greedy_store_hold_their_total_after_every_task(cut):
    der, gdumb = case("der", total=13, minibatch_size=4), case("gdumb", total=13)
    for task in cut:
        tiny.learn(der, [task]), tiny.learn(gdumb, [task])
        assert der.stored_bytes()["exemplars"] == gdumb.stored_bytes()["exemplars"] == 13 * 768
        assert set(der.memory.rows[:, 2]) <= set(range(task.seen))
        counts = [len(rows) for rows in gdumb.memory.rows]
        assert len(counts) == task.seen and max(counts) - min(counts) <= 1


def test_a_budget_too_small_for_the_last_task_is_said_before_the_first(tmp_path):
    learner = tiny.case("icarl", budget=4 * 768)  # enough for two tasks of two classes, not for the third
    with pytest.raises(UserError, match="budget 3072 holds no exemplar"):
        run_stream(learner, tiny.stream(), tmp_path)
    assert not learner.backbone.forwarded
