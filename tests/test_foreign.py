"""Other toolboxes' runs: files written here in their exact formats give back the matrix they were written from."""

import numpy as np
import pandas as pd
import pytest

from cilkit import foreign, metrics, outcomes
from cilkit.errors import UserError

NAN = np.nan
MATRIX = np.array([[90.5, NAN, NAN], [80.25, 95.0, NAN], [70.0, 85.75, 88.0]])
TOTALS = [90.5, 87.63, 81.25]


def line(message, second=0):
    return f"2024-01-18 10:00:{second:02d},251 [trainer.py] => {message}"


def groups(row, sizes, total):
    """What PILOT's `accuracy` returns: the total, a group a task, old and new."""
    ends = np.cumsum(sizes)
    names = [f"{end - size:02d}-{end - 1:02d}" for end, size in zip(ends, sizes, strict=True)]
    return {"total": total} | dict(zip(names, map(float, row), strict=True)) | {"old": 0, "new": float(row[-1])}


def pilot_log(path, seeds=(1993,), sizes=(10, 10, 10), nme=False, wrap=str, init_cls=10):
    """wrap: how numbers print, bare before numpy 2 and as np.float64(...) since."""
    lines = []
    for seed in seeds:
        lines += [line(f"{key}: {value}") for key, value in {
            "prefix": "reproduce", "dataset": "cifar224", "init_cls": init_cls, "increment": 10, "model_name": "slca",
            "backbone_type": "vit_base_patch16_224", "device": "[device(type='cuda', index=0)]", "seed": seed,
        }.items()]  # fmt: skip
        for t in range(3):
            lines += [line("All params: 85798656"), line("Trainable params: 85798656")]
            lines.append(line(f"Learning on {10 * t}-{10 * t + 10}").replace("trainer.py", "slca.py"))
            lines.append(line("lrate: 0.01").replace("trainer.py", "slca.py"))  # a method's own line is no setting
            row = groups(MATRIX[t, : t + 1] - (seed - 1993), sizes[: t + 1], TOTALS[t])
            text = "{" + ", ".join(f"{key!r}: {wrap(value)}" for key, value in row.items()) + "}"
            lines.append(line(f"CNN: {text}") if nme else line("No NME accuracy."))
            lines.append(line(f"NME: {text}" if nme else f"CNN: {text}"))
            for head in ["CNN", "NME"] if nme else ["CNN"]:
                lines.append(line(f"{head} top1 curve: [{', '.join(wrap(v) for v in TOTALS[: t + 1])}]"))
                lines.append(line(f"{head} top5 curve: [{', '.join(wrap(v + 5) for v in TOTALS[: t + 1])}]\n"))
            lines += [f"Average Accuracy (CNN): {np.mean(TOTALS)}", line("Average Accuracy (CNN): 86.46 \n")]
        lines += ["Accuracy Matrix (CNN):", "[[90.5 80.25 70.  ]", " [ 0. 95. 85.75]", " [ 0. 0. 88. ]]"]
        lines.append(line("Forgetting (CNN): 14.875"))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "wrap", [str, lambda value: f"np.float64({value})" if isinstance(value, float) else str(value)]
)
def test_a_pilot_log_gives_back_its_matrix_and_what_it_states(tmp_path, wrap):
    (run,) = foreign.read_pilot(pilot_log(tmp_path / "reproduce_1993_vit.log", wrap=wrap))
    np.testing.assert_array_equal(run.matrix, MATRIX)
    row = outcomes.row(run)
    assert row["forgetting (max before last)"] == metrics.forgetting_max_before_last(MATRIX) == 14.875  # as it prints
    assert row["last accuracy"] == TOTALS[-1] and row["average incremental accuracy"] == pytest.approx(np.mean(TOTALS))
    assert row["top-5 accuracy"] == TOTALS[-1] + 5 and row["order_seed"] == 1993
    assert (row["learner"], row["benchmark"], row["backbone"]) == ("slca (PILOT)", "cifar224", "vit_base_patch16_224")


def test_a_log_may_hold_several_seeds_and_both_heads(tmp_path):
    runs = foreign.read_pilot(pilot_log(tmp_path / "a.log", seeds=(1993, 1994), nme=True))
    assert [(run.settings["seed"], run.head) for run in runs] == [
        (seed, head) for seed in ("1993", "1994") for head in ("CNN", "NME")
    ]
    np.testing.assert_array_equal(runs[2].matrix, MATRIX - 1)


def test_groups_of_pycil_within_a_large_first_task_are_averaged(tmp_path):
    """PyCIL cuts every 10 classes, whatever the first task's size: B20 has two groups in its first task."""
    rows = [[60.0, 80.0], [50.0, 60.0, 90.0]]
    lines = [line("init_cls: 20"), line("increment: 10"), line("model_name: der")]
    lines += [line(f"CNN: {groups(row, [10] * len(row), 70.0)}") for row in rows]
    (tmp_path / "b20.log").write_text("\n".join(lines))
    (run,) = foreign.read_pilot(tmp_path / "b20.log")
    np.testing.assert_allclose(run.matrix, [[70, NAN], [55, 90]])
    lines[0] = line("init_cls: 15")  # groups 10-19 would hold classes of two tasks
    (tmp_path / "b15.log").write_text("\n".join(lines))
    assert foreign.read_pilot(tmp_path / "b15.log")[0].matrix is None
    (tmp_path / "excerpt.log").write_text("\n".join(lines[3:]))  # who can say how many tasks the first row has seen?
    assert foreign.read_pilot(tmp_path / "excerpt.log")[0].matrix is None


def test_a_missing_group_leaves_no_matrix(tmp_path):
    """With increment 1 PILOT prints no group for the newest class."""
    rows = [{"total": 50.0, "00-00": 50.0}, {"total": 40.0, "00-00": 40.0, "old": 40.0, "new": 40.0}]
    text = "\n".join(
        [line("init_cls: 1"), *(line(f"CNN: {row}") for row in rows), line("CNN top1 curve: [50.0, 40.0]")]
    )
    (tmp_path / "one.log").write_text(text)
    (run,) = foreign.read_pilot(tmp_path / "one.log")
    assert run.matrix is None and run.row()["last accuracy"] == 40


def mammoth_line(matrix, seed=0, model="slca", wrap=str):
    """`str` of the arguments and results, as Mammoth's `Logger.write` appends it; tensors' devices are not literals."""
    values = {"dataset": "seq-cifar100", "model": model, "lr": 0.005, "seed": seed, "buffer_size": None, "joint": 0}
    numbers = {f"accmean_task{t + 1}": float(np.nanmean(row)) for t, row in enumerate(matrix)}
    numbers |= {f"accuracy_{i + 1}_task{t + 1}": float(matrix[t, i])
                for t in range(len(matrix)) for i in range(matrix.shape[1]) if not np.isnan(matrix[t, i])}  # fmt: skip
    texts = [f"{key!r}: {value!r}" for key, value in values.items()] + ["'device': device(type='cuda', index=0)"]
    texts += [f"{key!r}: {wrap(value)}" for key, value in numbers.items()]
    texts += ["'cpu_memory_usage': [1.5, 2.5]", "'forward_transfer': None", "'forgetting': None"]
    return "{" + ", ".join(texts) + "}\n"


def test_a_mammoth_log_holds_a_run_a_line(tmp_path):
    path = tmp_path / "results" / "class-il" / "seq-cifar100" / "slca" / "logs.pyd"
    path.parent.mkdir(parents=True)
    path.write_text(mammoth_line(MATRIX) + mammoth_line(MATRIX - 1, 1, wrap=lambda value: f"np.float64({value})"))
    first, second = foreign.read_mammoth(path)
    np.testing.assert_array_equal(first.matrix, MATRIX)
    np.testing.assert_array_equal(second.matrix, MATRIX - 1)
    assert (first.head, first.settings["dataset"], second.row()["order_seed"]) == ("class-il", "seq-cifar100", 1)
    assert first.row()["forgetting (max)"] == metrics.forgetting_max(MATRIX)


def test_mammoth_runs_without_a_matrix_state_their_means(tmp_path):
    """Joint training tests every task after its only stage; domain-il logs the means alone."""
    path = tmp_path / "logs.pyd"
    domain = "{'model': 'er', 'dataset': 'rot-mnist', 'accmean_task1': 90.0, 'accmean_task2': 80.0}\n"
    path.write_text(mammoth_line(MATRIX[-1:], model="joint") + domain)
    joint, domain = foreign.read_mammoth(path)
    assert joint.matrix is None and joint.row()["last accuracy (task mean)"] == pytest.approx(np.mean(MATRIX[-1]))
    assert domain.matrix is None and domain.row()["average incremental accuracy (task mean)"] == 85


def class_preds(path, stages):
    """RanPAC's `class_preds`: two columns a task, filled up with -1 to the length of the test set."""
    length = max(len(true) for _, true in stages)
    table = pd.DataFrame({"init": -np.ones(length)})
    for t, pair in enumerate(stages):
        for kind, values in zip(("pred", "true"), pair, strict=True):
            table[f"{kind}_task_{t}"] = np.pad(values, (0, length - len(values)), constant_values=-1)
    table.to_csv(path)
    return path


def test_ranpac_predictions_are_scored_like_our_own(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [4, 2, 3, 5, 1, 7])
    tasks = np.array([0, 0, 0, 1, 1, 2])  # uneven tasks, uneven classes
    stages = []
    for seen in (3, 5, 6):
        true = labels[labels < seen]
        stages.append((np.where(random.random(len(true)) < 0.7, true, random.integers(0, seen, len(true))), true))
    (run,) = foreign.read_ranpac(class_preds(tmp_path / "cub_class_preds_publish_7.csv", stages))
    expected = [metrics.accuracy_row(*pair, tasks, 3) for pair in stages]
    np.testing.assert_allclose(run.matrix, expected)
    assert run.counts.tolist() == [9, 6, 7] and run.settings["dataset"] == "cub"
    np.testing.assert_allclose(run.class_accuracy[2], metrics.class_accuracy(*stages[2], 6))
    assert run.row()["last accuracy"] == pytest.approx(100 * np.mean(stages[2][0] == stages[2][1]))


def test_ranpac_predictions_of_a_domain_stream_have_no_matrix(tmp_path):
    true = np.array([0, 1, 2])
    path = class_preds(tmp_path / "core50_class_preds_publish_7.csv", [(np.array([0, 0, 0]), true), (true, true)])
    (run,) = foreign.read_ranpac(path)
    assert run.matrix is None and run.row()["average incremental accuracy"] == pytest.approx((100 / 3 + 100) / 2)


def test_ranpac_curves_logs_and_paper_tables(tmp_path):
    curves = pd.DataFrame({"top1_total": TOTALS, "ave_acc": [90.5, 87.62, 81.25]})
    curves.to_csv(tmp_path / "cifar224_publish_7.csv")
    row = foreign.read_ranpac(tmp_path / "cifar224_publish_7.csv")[0].row()
    assert (row["last accuracy"], row["last accuracy (task mean)"], row["benchmark"]) == (81.25, 81.25, "cifar224")

    lines = [line("Starting new run"), line("dataset: cifar224"), line("seed: 1993"), line("model_name: adapter")]
    for t in range(3):
        row = {name: value for name, value in groups(MATRIX[t, : t + 1], [10] * (t + 1), 0).items() if "-" in name}
        lines += [line(f"Group Accuracies after this task: {row}"), line(f"Ave Acc curve: {TOTALS[: t + 1]}")]
        lines.append(line(f"Top1 curve: {TOTALS[: t + 1]}"))
    (tmp_path / " _1993_vit.log").write_text("\n".join(lines))
    (run,) = foreign.read_ranpac(tmp_path / " _1993_vit.log")
    np.testing.assert_array_equal(run.matrix, MATRIX)
    assert run.toolbox == "RanPAC" and run.row()["last accuracy"] == TOTALS[-1]

    (tmp_path / "Table_data_main_x.csv").write_text(",x\nNCM only,70.5\nAlgorithm 1,90.1\nruntime,1234.5\n")
    table = outcomes.collect(foreign.read_ranpac(tmp_path / "Table_data_main_x.csv"))
    assert table["learner"].tolist() == ["NCM only (RanPAC)", "Algorithm 1 (RanPAC)"]
    assert table["last accuracy (task mean)"].tolist() == [70.5, 90.1] and set(table["benchmark"]) == {"x"}


def test_files_without_a_run_are_named(tmp_path):
    empty = tmp_path / "empty.log"
    empty.write_text("nothing\n")
    with pytest.raises(UserError, match=r"empty\.log holds no run of PILOT: expected lines"):
        foreign.read_pilot(empty)
    broken = tmp_path / "broken.log"
    broken.write_text(line("CNN: {'total': nan, '00-09': nan}"))
    with pytest.raises(UserError, match="'00-09': nan.* cannot be read"):
        foreign.read_pilot(broken)
    with pytest.raises(UserError, match="no run of Mammoth"):
        foreign.read_mammoth(empty)
    table = tmp_path / "table.csv"
    table.write_text(",a\nb,1\n")
    with pytest.raises(UserError, match="no run of RanPAC"):
        foreign.read_ranpac(table)
    table.write_text("")
    with pytest.raises(UserError, match="cannot be read as a table"):
        foreign.read_ranpac(table)
    with pytest.raises(UserError, match="cannot be read"):
        foreign.read_pilot(tmp_path / "missing.log")
