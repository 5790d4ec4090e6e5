"""What the README shows is what the repository's data say."""

import importlib
import re
from pathlib import Path

import pytest
from PIL import Image

from cilkit.artifacts import sha256_of

HOME = Path(__file__).resolve().parent.parent
README = (HOME / "README.md").read_text()


def script(name):
    """A file of scripts/ as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOME / "scripts")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def study():
    return script("study")


TABLES = {
    "sweep_tables": ["small_sweeps"],
    "study": ["study", "pairs", "replay", "reference"],
    "real_runs": ["real", "upper", "short_side"],
    "every_learner": ["every_conv", "every_transformer", "drift"],
    "foresight": ["kept_realms", "class_sweep"],
    "memory_bytes": ["memory_bytes"],
    "replay_runs": ["replay_arms", "replay_gap"],
    "writing_runs": ["writing", "four_methods"],
}


@pytest.mark.parametrize(("source", "name"), [(source, name) for source, names in TABLES.items() for name in names])
def test_tables_are_computed_from_the_committed_data(source, name):
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.S)[1]
    assert shown == script(source).readme_tables()[name]


def test_the_kept_realms_are_counted_as_they_are():
    import pandas as pd

    shown = pd.read_csv(HOME / "reports" / "sample" / "kept_realms.csv")
    pd.testing.assert_frame_equal(script("foresight").kept_realms(), shown, check_dtype=False)


def test_the_figure_was_drawn_from_the_committed_data():
    picture = Image.open(HOME / "reports" / "sample" / "study.png")
    assert picture.text["Description"] == f"study.csv sha256 {sha256_of(HOME / 'reports' / 'sample' / 'study.csv')}"


def test_every_arm_was_run_on_every_class_order(study):
    import pandas as pd

    table = pd.read_csv(HOME / "reports" / "sample" / "study.csv")
    runs = table[table["method"].isin(study.METHODS.values())].groupby(["arm", "method"])["order_seed"].nunique()
    assert len(runs) == len(study.ARMS) * len(study.METHODS) and set(runs) == {10}


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (HOME / target).exists(), target


def test_every_make_target_exists():
    makefile = (HOME / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
