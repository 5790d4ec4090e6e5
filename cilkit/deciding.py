"""When a comparison is decided: how many more class orders until its interval is as narrow as asked.

The rule looks at the width alone, never at the difference: stop at the first n >= `at_least` at which the half width of
the 95 % t interval of the paired differences, t_{n-1, 0.975} s / sqrt(n), is at most `within` (a sequential interval of
fixed width, Chow and Robbins 1965; remembered). A rule that stopped at significance would find differences where there
are none, the sooner the more often one looks. Watching the width costs less: of normal differences, mean ± `within`
holds the truth at stopping in 91.8 % of sweeps with `at_least` 3, in 93.4 % with 6 and in 94.0 % with 10, each at the
spread where that is least (simulated, 40,000 sweeps a spread; the t interval itself: 90.2, 92.4 and 93.4 %). The
default is 6; a test repeats its simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import outcomes
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

AT_LEAST = 6  # pairs before the rule may say enough
APART = ("benchmark", "protocol", "stream", "increments")  # runs that differ in these are never paired
POINTS = ("accuracy", "forgetting", "transfer", "intransigence")  # figures in percent differ in points


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline on one stream, over the pairs seen so far."""

    arm: str
    baseline: str
    value: str
    where: str  # which stream, where the table has several; else ""
    n: int  # pairs
    mean: float  # of the differences
    half_width: float  # of the 95 % interval; NaN below two pairs
    within: float  # the half width that is wanted
    more: int | None  # pairs that are still needed, by the spread so far; None below two pairs

    @property
    def decided(self) -> bool:
        return self.more == 0

    def __str__(self) -> str:
        """ "slca − slow_learner: 9 more for ± 3 points (now +4.2 ± 6.1 over 3)"."""
        unit = " points" if any(word in self.value for word in POINTS) else ""
        head = f"{self.arm} − {self.baseline}" + (f", {self.where}" if self.where else "")
        if self.more is None:
            return f"{head}: too early to say ({self.n} pair{'s' * (self.n != 1)} so far)"
        now = f"{self.mean:+.1f} ± {self.half_width:.1f}"
        if self.decided:
            return f"{head}: {now}{unit} over {self.n}, decided (± {self.within:g} asked)"
        return f"{head}: {self.more} more for ± {self.within:g}{unit} (now {now} over {self.n})"


def wanted(spread: float, within: float, at_least: int = AT_LEAST) -> int:
    """The smallest n >= at_least with t_{n-1, 0.975} · spread / sqrt(n) <= within.

    spread: sample standard deviation of the paired differences. The left side falls with n, so halving finds it.
    """
    from scipy.special import stdtrit

    def narrow(n: int) -> bool:
        return stdtrit(n - 1, 0.975) * spread / math.sqrt(n) <= within

    if not within > 0:
        raise UserError(f"a half width of {within} cannot be reached; ask for one above 0, in points")
    low = high = max(2, at_least)
    while not narrow(high):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if narrow(middle) else (middle + 1, high)
    return low


def more_orders(differences: Sequence[float], within: float, at_least: int = AT_LEAST) -> int | None:
    """How many more pairs make the interval's half width <= within, by the spread seen so far; 0: decided.

    differences: one a class order, arm − baseline. None for fewer than two, which have no spread.
    """
    values = np.asarray(differences, float)
    return None if len(values) < 2 else _more(float(values.std(ddof=1)), len(values), within, at_least)


def _more(spread: float, n: int, within: float, at_least: int) -> int:
    """Those still to come. Where the width of n pairs is small enough already, by the very rule, none."""
    return max(0, wanted(spread, within, at_least) - n)


def comparisons(
    table: pd.DataFrame,
    value: str,
    by: str | Sequence[str] = "learner",
    baseline: str = "",
    within: float = 3.0,
    at_least: int = AT_LEAST,
    over: Sequence[str] = outcomes.SEEDS,
) -> list[Comparison]:
    """Every arm against the baseline, on each stream of a table of results (see `outcomes.compare`).

    within: the half width wanted, in the value's unit. UserError where no stream has a run of the baseline.
    """
    if value not in table:
        raise UserError(f"the results have no figure {value!r}; take one of their columns, such as 'last accuracy'")
    apart = [name for name in APART if name in table and name not in over]
    groups = list(table.groupby([table[name].astype(str) for name in apart], sort=False)) if apart else [((), table)]
    several = [i for i in range(len(apart)) if len({key[i] for key, _ in groups}) > 1]
    found, seen = [], outcomes.arms(table, by)
    if baseline not in set(seen):
        raise UserError(f"baseline {baseline!r} is not among the arms {', '.join(map(str, seen.unique()))}")
    for key, part in groups:
        if baseline not in set(outcomes.arms(part, by)):
            continue
        compared = outcomes.compare(part.dropna(subset=[value]), value, by, baseline, over)
        where = ", ".join(key[i] for i in several)
        for line in compared.to_dict("records"):
            arm, n, half_width = line[compared.columns[0]], line["pairs"], line["difference_half_width"]
            if arm != baseline:
                more = None if n < 2 else _more(_spread(half_width, n), n, within, at_least)
                found.append(Comparison(arm, baseline, value, where, n, line["difference"], half_width, within, more))
    return found


def _spread(half_width: float, n: int) -> float:
    """The sample standard deviation behind the half width of n values' interval."""
    from scipy.special import stdtrit

    return half_width * math.sqrt(n) / float(stdtrit(n - 1, 0.975))


def decided(found: Sequence[Comparison]) -> bool:
    """Whether there is a comparison and every one is as narrow as asked over enough pairs."""
    return bool(found) and all(one.decided for one in found)
