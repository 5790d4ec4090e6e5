import inspect
import subprocess
import sys

import pytest
import tiny

from cilkit import learners
from cilkit.errors import UserError


def test_every_learner_is_found_and_its_settings_are_complete():
    for name in learners.NAMES:
        found = learners.settings(name, {})
        assert (found.get("epochs", 0) > 0) is (name not in ("nearest_mean", "simplecil"))
        assert learners.find(name).__module__ == f"cilkit.learners.{name}"


def test_settings_need_no_torch():
    code = "import sys; from cilkit import learners; [learners.settings(n, {}) for n in learners.NAMES]"
    heavy = "print([name for name in ('torch', 'timm', 'sklearn', 'diffusers') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'slca'"):
        learners.settings("slcaa", {})
    with pytest.raises(UserError, match="no parameter 'slow_rte' .did you mean 'slow_rate'"):
        learners.settings("slca", {"slow_rte": 0.1})
    with pytest.raises(UserError, match="no learner"):
        learners.find(int)


def test_values_take_the_declared_type_or_are_refused():
    assert learners.settings("slca", {"lr": 1, "milestones": [3, 4]})["milestones"] == (3, 4)
    assert isinstance(learners.settings("slca", {"lr": 1})["lr"], float)
    for bad in ({"epochs": 2.5}, {"lr": "fast"}, {"local_softmax": 1}, {"lr": True}):
        with pytest.raises(UserError, match="expected"):
            learners.settings("slca", bad)
    with pytest.raises(UserError, match="slow_rate 0 freezes"):
        learners.settings("slca", {"slow_rate": 0.0, "norm_statistics": "batch"})
    with pytest.raises(UserError, match="euclidean"):
        learners.settings("nearest_mean", {"distance": "manhattan"})


def test_images_are_for_learners_that_replay_them():
    with pytest.raises(UserError, match="replays no synthetic images"):
        learners.create("slca", tiny.backbone(), images=tiny.image_set())


@pytest.mark.parametrize("name", learners.NAMES)
def test_no_parameter_has_the_name_of_another_in_the_road(name):
    from cilkit.road import learning

    taken = {
        word for verb in (learning.stream, learning.run, learning.learn) for word in inspect.signature(verb).parameters
    }
    assert not taken & learners.settings(name, {}).keys()
