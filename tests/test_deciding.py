"""Deciding: the smallest number of orders is found, and a sweep that stops by its width is right often enough."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from cilkit import deciding, metrics
from cilkit.errors import UserError


@pytest.mark.parametrize("within", [0.2, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.4, 5.0])
def test_the_search_finds_what_counting_finds(spread, within):
    for at_least in (2, 3, 6):
        counted = at_least
        while stdtrit(counted - 1, 0.975) * spread / math.sqrt(counted) > within:
            counted += 1
        assert deciding.wanted(spread, within, at_least) == counted


def test_more_orders_are_those_still_to_come():
    differences = [1.0, 4.0, 7.0]
    assert deciding.wanted(3.0, 3.0) == 7 and deciding.more_orders(differences, 3.0) == 4
    assert deciding.more_orders(differences, 10.0, at_least=3) == 0 and deciding.more_orders(differences, 10.0) == 3
    assert deciding.more_orders([1.0], 3.0) is None and deciding.more_orders([], 3.0) is None
    with pytest.raises(UserError, match="a half width of 0 cannot be reached"):
        deciding.more_orders(differences, 0)


def test_mean_and_width_asked_for_hold_the_truth_in_93_of_100_sweeps():
    """At the worst of the spreads, of 0.5 to 5 half widths. 4,000 sweeps each have a standard error of 0.4 points."""
    random, longest = np.random.default_rng(0), 200
    n = np.arange(1, longest + 1)
    quantiles = np.array([np.inf, *stdtrit(n[1:] - 1, 0.975)])
    least = []
    for spread in (0.5, 1.0, 1.6, 2.0, 2.5, 3.0, 5.0):
        values = random.normal(0, spread, (4000, longest))
        means = values.cumsum(1) / n
        variances = (np.square(values).cumsum(1) - n * means**2) / np.maximum(n - 1, 1)
        with np.errstate(invalid="ignore"):
            narrow = (quantiles * np.sqrt(variances.clip(0) / n) <= 1) & (n >= deciding.AT_LEAST)
        stopped = narrow.any(1)
        assert stopped.all()
        at = narrow.argmax(1)
        assert at[0] + 1 >= deciding.AT_LEAST
        least.append(np.mean(np.abs(means[np.arange(len(at)), at]) <= 1))
        if spread == 2.0:  # the vectorised rule is the one that is used
            for row in range(20):
                seen = values[row, : at[row] + 1]
                assert deciding.more_orders(seen, 1.0) == 0 and deciding.more_orders(seen[:-1], 1.0) > 0
    assert 0.922 <= min(least) <= 0.95  # 0.934 with more sweeps


def table(differences, **columns):
    rows = []
    for k, difference in enumerate(differences):
        rows.append({"learner": "slow_learner", "order_seed": 1993 + k, "last accuracy": 10.0 * k} | columns)
        rows.append(rows[-1] | {"learner": "slca", "last accuracy": 10.0 * k + difference})
    return pd.DataFrame(rows)


def test_a_comparison_is_a_sentence():
    (found,) = deciding.comparisons(table([1.0, 4.0, 7.0]), "last accuracy", baseline="slow_learner", within=3)
    interval = metrics.mean_interval([1.0, 4.0, 7.0])
    assert (found.n, found.mean, found.more) == (3, 4.0, 4) and found.half_width == pytest.approx(interval.half_width)
    assert str(found) == "slca − slow_learner: 4 more for ± 3 points (now +4.0 ± 7.5 over 3)"
    assert not deciding.decided([found])
    (found,) = deciding.comparisons(table([1.0, 1.5] * 4), "last accuracy", baseline="slow_learner", within=3)
    assert str(found) == "slca − slow_learner: +1.2 ± 0.2 points over 8, decided (± 3 asked)"
    assert deciding.decided([found]) and not deciding.decided([])
    (found,) = deciding.comparisons(table([1.0]), "last accuracy", baseline="slow_learner")
    assert str(found) == "slca − slow_learner: too early to say (1 pair so far)" and not found.decided


def test_streams_are_never_paired_with_one_another():
    both = pd.concat([table([1.0, 4.0, 7.0], benchmark="cub200"), table([2.0] * 6, benchmark="cars")])
    found = deciding.comparisons(both, "last accuracy", baseline="slow_learner")
    assert [(one.where, one.n, one.mean) for one in found] == [("cub200", 3, 4.0), ("cars", 6, 2.0)]
    assert str(found[0]).startswith("slca − slow_learner, cub200: 4 more")
    assert not deciding.decided(found) and deciding.decided(found[1:])
    alone = both[(both["benchmark"] == "cub200") | (both["learner"] == "slca")]
    assert len(deciding.comparisons(alone, "last accuracy", baseline="slow_learner")) == 1


def test_an_arm_without_a_common_order_waits_and_wrong_names_are_said():
    one = table([1.0, 2.0])
    apart = pd.concat([one, pd.DataFrame([{"learner": "ewc", "order_seed": 2026, "last accuracy": 5.0}])])
    found = {c.arm: c for c in deciding.comparisons(apart, "last accuracy", baseline="slow_learner")}
    assert found["ewc"].n == 0 and found["ewc"].more is None
    with pytest.raises(UserError, match="baseline 'sclda' is not among the arms slow_learner, slca"):
        deciding.comparisons(one, "last accuracy", baseline="sclda")
    with pytest.raises(UserError, match="have no figure 'accuracy'"):
        deciding.comparisons(one, "accuracy", baseline="slca")
    with pytest.raises(UserError, match=r"no column 'learner_' \(did you mean 'learner'\?\)"):
        deciding.comparisons(one, "last accuracy", by="learner_", baseline="slca")
