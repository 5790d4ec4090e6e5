"""What a run costs: operations counted without computing anything, against the transformer's closed form."""

import pytest
import tiny

from cilkit import costs, learners

TOKENS, DIM, DEPTH, PATCH = 65, 96, 4, 2 * 64 * 48 * 96  # small_vit: 64 patches of 4 x 4 x 3 and a class token
BLOCK = 2 * TOKENS * DIM * (3 * DIM + DIM + 4 * DIM + 4 * DIM) + 2 * 2 * TOKENS * TOKENS * DIM  # weights; attention
FORWARD = PATCH + DEPTH * BLOCK
BACKWARD = 2 * FORWARD - PATCH  # for weights and inputs alike, but for the image itself


def counted(name, **hyper):
    return costs.counted(learners.create(name, costs.meta("small_vit"), **hyper), tiny.stream())


def test_operations_are_those_of_the_closed_form():
    cost = counted("slow_learner", epochs=3)
    assert cost.images == {"student": 3 * 48, "test": 10 + 20 + 30}
    assert cost.flops == {"student": FORWARD + BACKWARD, "test": FORWARD}
    assert cost.total == 144 * (FORWARD + BACKWARD) + 60 * FORWARD
    assert cost.hours(rate=cost.total) == pytest.approx(1 / 3600)


def test_what_stands_still_has_no_backward_pass():
    assert counted("simplecil").flops == {"statistics": FORWARD, "test": FORWARD}
    frozen = costs.per_image(learners.create("slow_learner", costs.meta("small_vit"), slow_rate=0.0), tiny.stream()[0])
    assert frozen["student"] == FORWARD


def test_passes_of_other_kinds_have_their_own_price():
    assert counted("ewc").flops["fisher"] == FORWARD + BACKWARD
    assert counted("lwf").flops["teacher"] == FORWARD


def test_a_query_is_counted_once_and_prompts_are_paid_for():
    keys = 2 * DIM * 10  # the query beside each of the pool's keys
    assert counted("l2p", chosen=0).flops["test"] == FORWARD + keys
    one = counted("l2p", chosen=1, length=5).flops
    block = 2 * (TOKENS + 5) * DIM * 12 * DIM + 2 * 2 * (TOKENS + 5) ** 2 * DIM
    assert one["query"] == FORWARD and one["test"] == PATCH + DEPTH * block + keys
    assert one["test"] < one["student"] < 2.2 * one["test"], "no gradients for frozen weights"
    assert "query" in counted("l2p").images


def test_low_rank_updates_cost_less_than_full_ones():
    assert FORWARD < counted("slca_pp").flops["statistics"] < 1.1 * FORWARD
    assert counted("slca_pp").flops["student"] < 0.8 * counted("slca").flops["student"]
