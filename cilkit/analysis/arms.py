"""Several runs beside one another: curves, what they cost, which both learn and keep, and which differences stand."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import answers, fronts, metrics, outcomes
from cilkit.analysis.said import accuracy
from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

FEW = 5  # arms below which a rank correlation says nothing: of 4, even a perfect one has p = 0.08


def curves(arms: "Mapping[str, tuple[Run, str | None]]", order: int | None = None) -> "pd.DataFrame":
    """Accuracy over all classes seen, of several arms: arm, order, classes_seen, accuracy, after_task."""
    import pandas as pd

    rows = []
    for arm, (run, head) in arms.items():
        stages = metrics.accuracy_by_stage(accuracy(run, head), run.counts)
        seen = np.cumsum(run.increments)
        rows += [
            (arm, order, int(n), float(value), t + 1) for t, (n, value) in enumerate(zip(seen, stages, strict=True))
        ]
    return pd.DataFrame(rows, columns=["arm", "order", "classes_seen", "accuracy", "after_task"])


def answers_by_stage(run: Run) -> "pd.DataFrame":
    """What a learner that writes says after each task, a row each: images, and `answers.FIGURES` in percent of them."""
    import pandas as pd

    names, sentence = run.settings["notes"]["names"], answers.Sentence(run.settings["hyper"]["sentence"])
    rows, seen = [], np.cumsum(run.increments)
    for t, known in enumerate(seen):
        written = [sentence.parse(text) for text in run.texts(t)]
        rows.append({"images": len(written)} | answers.figures(written, run.labels(t), names, int(known)))
    return pd.DataFrame(rows, index=pd.Index(np.arange(1, len(rows) + 1), name="after task"))


def phases(arms: "Mapping[str, Run]") -> "pd.DataFrame":
    """What each phase of each run took: arm, phase, seconds, peak_bytes, calls. Empty where none were measured."""
    import pandas as pd

    rows = [{"arm": arm, "phase": phase} | spent
            for arm, run in arms.items() for phase, spent in run.measured.get("phases", {}).items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "phase", "seconds", "peak_bytes", "calls"])


def stability_plasticity(
    arms: Mapping[str, tuple[Run, str | None]], labels: Mapping[str, str] | None = None
) -> "pd.DataFrame":
    """A row an arm: what it learns and what it keeps, in percent.

    arm, label; plasticity: learning accuracy, the mean of A[i, i]; stability: 100 minus forgetting (max before last);
    last_on_old: mean over old tasks of the accuracy after the last one; last: accuracy over all images then; on_front:
    no other arm has at least as much plasticity and stability, and more of one. labels: {arm: what a figure writes}.
    """
    import pandas as pd

    rows = []
    for arm, (run, head) in arms.items():
        if run.n_tasks < 2:
            raise UserError(f"arm {arm!r} has one task and cannot forget; stability needs two or more.")
        matrix = accuracy(run, head)
        row = {"arm": arm, "label": (labels or {}).get(arm, arm), "plasticity": metrics.learning_accuracy(matrix)}
        row |= {"stability": 100 - metrics.forgetting_max_before_last(matrix), "last_on_old": matrix[-1, :-1].mean()}
        rows.append(row | {"last": metrics.last_accuracy(matrix, run.counts)})
    table = pd.DataFrame(rows)
    return table.assign(on_front=fronts.on_front(-table["plasticity"], table["stability"]))


def rank_correlations(
    table: "pd.DataFrame", figures: Sequence[str] | None = None, value: str = "last accuracy"
) -> "pd.DataFrame":
    """Does what differs between arms go with what they reach? A row a figure: figure, n, spearman, p, says.

    table: a row an arm, with `value` and numeric columns such as a domain gap. figures: which; None: all but `value`.
    Below five arms there is no p (see `metrics.spearman`), and `says` that there is no conclusion.
    """
    import pandas as pd

    if value not in table:
        raise UserError(f"the table has no column {value!r}; its columns are {', '.join(map(str, table))}.")
    figures = [name for name in table.select_dtypes("number") if name != value] if figures is None else list(figures)
    rows = []
    for name in figures:
        pairs = table[[name, value]].dropna()
        n, (rank, p) = len(pairs), metrics.spearman(pairs[name], pairs[value])
        if n < FEW:
            p, says = float("nan"), f"n = {n}: no conclusion"
        elif np.isnan(rank):
            says = f"n = {n}: one of the two does not vary"
        else:
            way = "higher" if rank > 0 else "lower"
            says = f"n = {n}: {way} accuracy where it is larger" if p < 0.05 else f"n = {n}: no relation shown"
        rows.append({"figure": name, "n": n, "spearman": rank, "p": p, "says": says})
    return pd.DataFrame(rows, columns=["figure", "n", "spearman", "p", "says"])


# ---------------------------------------------------------------- over class orders


def compare_arms(table: "pd.DataFrame", value: str, baseline: str = "") -> "pd.DataFrame":
    """A row an arm: mean and half width of the 95 % t interval over class orders and, paired, minus the baseline.

    table: columns arm, order and `value`, a row a run. Orders that only one arm has are left out of its pairing.
    """
    compared = outcomes.compare(table, value, "arm", baseline, over=["order"])
    return compared.rename(columns={"runs": "orders"}).drop(columns="pairs", errors="ignore")


def significance(
    table: "pd.DataFrame",
    value: str = "last accuracy",
    by: str | Sequence[str] = "arm",
    baseline: str = "",
    over: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """Which arms differ from the baseline over class orders and seeds? A row an arm but the baseline.

    The arm's column, pairs, difference (mean of arm - baseline), low and high (95 % t interval), p_wilcoxon (signed
    ranks), p_sign (sign test, ties left out), p_holm (Holm 1979 over the Wilcoxon p of all arms), and a sentence.
    Wilcoxon of five pairs cannot get below p = 0.06, of six it can.
    over: what a pair shares; None: the column `order` if there is one, else `outcomes.SEEDS`.
    """
    import pandas as pd

    over = list(over) if over is not None else ["order"] if "order" in table else list(outcomes.SEEDS)
    compared = outcomes.compare(table, value, by, baseline, over)  # also checks what was asked for
    if not baseline:
        raise UserError("differences need a baseline; name one of the arms.")
    name, shared = compared.columns[0], [column for column in over if column in table]
    unit = table[shared].astype(object).fillna("").astype(str).agg(", ".join, axis=1)
    wide = pd.DataFrame({"arm": outcomes.arms(table, by), "unit": unit, "value": table[value]}).pivot(
        index="unit", columns="arm", values="value"
    )
    rows = []
    for line in compared[compared[name] != baseline].to_dict("records"):
        differences = (wide[line[name]] - wide[baseline]).dropna().to_numpy()
        half = line["difference_half_width"]
        row = {name: line[name], "pairs": line["pairs"], "difference": line["difference"]}
        row |= {"low": line["difference"] - half, "high": line["difference"] + half}
        rows.append(row | {"p_wilcoxon": metrics.wilcoxon_p(differences), "p_sign": metrics.sign_test_p(differences)})
    found = pd.DataFrame(rows, columns=[name, "pairs", "difference", "low", "high", "p_wilcoxon", "p_sign"])
    found["p_holm"] = metrics.holm(found["p_wilcoxon"].to_numpy(float))
    found["says"] = [_sentence(row, baseline, len(found)) for row in found.itertuples(index=False)]
    return found


def _sentence(row, baseline: str, arms: int) -> str:
    """What a row of `significance` says, in words."""
    if row.pairs < 2:
        return f"{row.pairs} pair{'s' * (row.pairs != 1)}: no conclusion"
    after = f" after Holm's correction for {arms} arms" if arms > 1 else ""
    p = f"p = {row.p_holm:.3f}" if row.p_holm >= 0.001 else "p < 0.001"
    if row.p_holm < 0.05:
        return f"{'better' if row.difference > 0 else 'worse'} than {baseline} over {row.pairs} pairs ({p}{after})"
    short = "; too few pairs for any other answer" if 2 * 0.5**row.pairs >= 0.05 else ""
    return f"no difference from {baseline} shown over {row.pairs} pairs ({p}{after}){short}"
