"""Matrices as heat maps: accuracy, confusion, similarity, sweeps over two settings."""

from typing import TYPE_CHECKING

from cilkit.plots import parts
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def accuracy_heat_map(matrix: "pd.DataFrame", title: str = "Accuracy matrix") -> "Figure":
    """The accuracy matrix, (tasks, tasks) in percent: a row a stage, a column a task; blank above the diagonal."""
    named = matrix.rename(index=lambda name: str(name).removeprefix("after "))
    return parts.heat_map(named, title, "test accuracy on task", "after learning", "accuracy (%)")


@styled
def confusion_map(shares: "pd.DataFrame", title: str = "Where test images go") -> "Figure":
    """Row shares in percent: rows what an image is, columns what it is taken for (tasks or classes)."""
    return parts.heat_map(shares, title, "taken for", "true", "share of the row's images (%)")


@styled
def similarity_map(similarity: "pd.DataFrame", title: str = "Feature similarity") -> "Figure":
    """Linear CKA between stages, 0 … 1."""
    return parts.heat_map(similarity, title, "", "", "linear CKA", top=1.0, digits=2)


@styled
def score_map(
    table: "pd.DataFrame", title: str = "", labels: tuple[str, str] = ("", ""), unit: str = "accuracy (%)"
) -> "Figure":
    """A sweep over two settings, in percent: a row and a column a value. labels: what columns and rows are."""
    return parts.heat_map(table, title, labels[0], labels[1], unit, digits=1)


@styled
def class_accuracy_map(table: "pd.DataFrame", title: str = "Accuracy on each class over time") -> "Figure":
    """A row a class in the order of learning, a column a stage. table: `analysis.accuracy_by_class`."""
    return parts.heat_map(table.T, title, "after learning task", "class", "accuracy (%)")
