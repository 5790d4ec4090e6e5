"""Presets of known models: every number with its tag, found by hub name, overridable, and a fast variant declared."""

import pytest
import tiny_pipelines
import yaml

from cilkit.errors import UserError
from cilkit.synthesis import generators, load_generator, presets
from cilkit.synthesis.diffusion import EXECUTION, OPTIONAL, PAPER

TAGS = ("read", "quoted", "remembered", "our decision", "measured")
SETTINGS = {*PAPER, *OPTIONAL, "size", "scheduler", "licence"} - {"preset", "fast", "revision", "start", "strength"}


@pytest.fixture
def folder(tmp_path):
    return tiny_pipelines.write("sd", tmp_path / "sd")


def test_every_setting_of_every_preset_is_known_and_tagged():
    content = yaml.safe_load(presets.FILE.read_text())
    for name, entry in content.items():
        fast = entry.pop("fast", {})
        assert entry.pop("model") and entry["licence"] and set(fast) <= {"steps", "cache"}, name
        for group in (entry, *fast.values()):
            assert set(group) <= SETTINGS and not set(group) & set(EXECUTION), name
            for key, (value, tag) in group.items():
                assert tag.split(":")[0] in TAGS, (name, key, tag)
                assert value is not None and not (tag.startswith("measured") and name != "embedded"), (name, key)
    wanted = {"minisd", "sd14", "sd15", "sdxl", "sdxl-turbo", "sd-turbo", "sd35-medium", "flux-schnell", "flux-dev"}
    assert wanted | {"pixart-sigma", "sd15-lcm", "sdxl-lightning", "embedded"} <= set(content)


def test_the_paper_s_preset_is_what_its_notebook_says():
    minisd = presets.preset("minisd")
    assert minisd.model == "lambdalabs/miniSD-diffusers"
    paper = {"size": 256, "steps": 40, "guidance": 2.0, "batch_size": 20, "precision": "fp16"}
    assert minisd.settings == paper


def test_preset_by_name_by_hub_name_and_overridden(folder, monkeypatch):
    fetched = []
    monkeypatch.setattr(generators, "_fetched", lambda name, revision=None: fetched.append((name, revision)) or folder)
    by_name, by_hub = load_generator("minisd"), load_generator("lambdalabs/miniSD-diffusers", revision="abc")
    assert fetched == [("lambdalabs/miniSD-diffusers", None), ("lambdalabs/miniSD-diffusers", "abc")]
    assert by_name.size == by_hub.size == 256 and by_name.settings["steps"] == 40
    assert (by_name.settings["preset"], by_hub.settings.get("preset")) == ("minisd", None)
    assert by_name.spec == by_hub.spec == "lambdalabs/miniSD-diffusers" and by_name.given == {"preset": "minisd"}
    assert load_generator(by_name.spec, **by_name.given).settings == by_name.settings  # as a worker loads it
    assert load_generator("minisd", steps=7, guidance=4.0).settings["guidance"] == 4.0
    assert by_name.licence == "creativeml-openrail-m"
    schnell = load_generator("flux-schnell")
    assert schnell.settings["max_tokens"] == 256 and schnell.gpu_precision == "bf16"


def test_preset_for_a_local_folder_and_precision_on_a_cpu(folder):
    generator = load_generator(folder, preset="sd15", size=32)
    assert (generator.settings["steps"], generator.size, generator.precision) == (50, 32, "fp32")
    assert "precision" not in generator.settings and generator.gpu_precision == "fp16"
    with pytest.raises(UserError, match=r"preset 'sd-15' is unknown \(did you mean 'sd15'\?\); known are embedded"):
        load_generator(folder, preset="sd-15")


def test_a_fast_variant_replaces_settings_but_not_what_is_asked_for(folder):
    full, fast = (load_generator(folder, preset="minisd", fast=fast) for fast in ("", "steps"))
    assert full.settings["scheduler"] == "DDIMScheduler" and "fast" not in full.settings
    assert fast.settings["steps"] < full.settings["steps"] and fast.settings["fast"] == "steps"
    assert fast.settings["scheduler"] == "UniPCMultistepScheduler"
    assert load_generator(folder, preset="minisd", fast="steps", steps=15).settings["steps"] == 15
    assert load_generator(folder, preset="minisd", fast="cache").settings["cache"]
    for asked in ({"fast": "steps"}, {"fast": "turbo", "preset": "minisd"}):
        with pytest.raises(UserError, match="leave fast empty"):
            load_generator(folder, **asked)


def test_the_embedded_generator_has_a_measured_fast_preset():
    full, fast = load_generator("embedded", steps=40), load_generator("embedded", fast="steps")
    declared = yaml.safe_load(presets.FILE.read_text())["embedded"]["fast"]["steps"]
    assert {tag for _, tag in declared.values()} == {"measured: scripts/fast_preset.py"}
    assert fast.digest == full.digest and full.settings["steps"] / fast.settings["steps"] >= 4
    assert set(load_generator("embedded").settings) == {*PAPER, "size", "scheduler"}  # undisturbed by presets
