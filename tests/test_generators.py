"""Generators: found by name, checked before painting, one seed an image, and heavy libraries only when they paint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cilkit.data.shards import open_set
from cilkit.errors import UserError
from cilkit.realms import foresee
from cilkit.synthesis import glyphs, load_generator, make_plan, paint_plan
from cilkit.synthesis.diffusion import PAPER
from cilkit.synthesis.generators import EMBEDDED

WEIGHTS = pytest.mark.skipif(not (EMBEDDED / "model_index.json").exists(), reason="the generator is not trained yet")


def test_font_renderings_are_the_seeds_alone():
    generator = load_generator("font-renderings")
    images = generator.paint(["a", "b"], [5, 6], ["digit one", "heart"])
    assert images.shape == (2, generator.size, generator.size, 3) and images.dtype == np.uint8
    assert (images[1] == glyphs.render("heart", np.random.default_rng(6))).all()
    assert (generator.paint(["x"], [6], ["heart"])[0] == images[1]).all()
    assert len(generator.digest) == 64 and generator.digest == load_generator("font-renderings").digest


def test_font_renderings_take_no_settings():
    assert load_generator("font-renderings", device="cpu").most_at_once() == 0
    assert load_generator("font-renderings").tokens(["a b"]) == ([2], 0)
    with pytest.raises(UserError, match="has no settings, but 'steps' was given"):
        load_generator("font-renderings", device="cpu", steps=3)


def test_unknown_generator_names_what_there_is(tmp_path):
    for spec in ("dall-e", str(tmp_path), "./nowhere"):
        with pytest.raises(UserError, match="expected 'embedded', 'font-renderings', a folder with model_index.json"):
            load_generator(spec)


def test_misspelt_presets_are_guessed_and_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    import diffusers

    for spec, near in {"mini-sd": "minisd", "sdxl_turbo": "sdxl-turbo", "embeded": "embedded"}.items():
        with pytest.raises(UserError, match=rf"'{spec}' is unknown \(did you mean '{near}'\?\); expected"):
            load_generator(spec)

    def unreachable(*_, **__):
        raise OSError("no route to host, " + 50 * "and a long story " + "\nwith a second line")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", unreachable)
    with pytest.raises(UserError, match=r"lambdalabs.* is neither .* \(no route .* …\); check") as error:
        load_generator("minisd")
    assert len(str(error.value)) < 450 and "\n" not in str(error.value)


def test_an_object_that_paints_is_taken_as_it_is():
    class Own:
        def paint(self, prompts, seeds, concepts): ...

    own = Own()
    assert load_generator(own) is own


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder as far as it is read without painting: a 64 x 64 model with an 8-word vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = "a photograph of digit one two round :".split()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, content in {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
        "unet/config.json": {"sample_size": 8},
        "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
        "scheduler/scheduler_config.json": {"_class_name": "PNDMScheduler"},
        "tokenizer/tokenizer_config.json": {"model_max_length": 8},
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path


def test_settings_are_the_folder_s_then_the_paper_s_then_what_is_asked(folder):
    generator = load_generator(folder)
    assert generator.settings == {**PAPER, "size": 64, "scheduler": "PNDMScheduler"}
    assert generator.size == 64 and generator.batch_size == 20
    (folder / "paintable.json").write_text(json.dumps({"settings": {"steps": 10, "template": "x"}}))
    assert load_generator(folder).settings["steps"] == 10
    assert load_generator(folder, steps=4, guidance=7.5).settings["steps"] == 4
    with pytest.raises(UserError, match="setting 'cfg' is unknown; known are steps, guidance"):
        load_generator(folder, cfg=3)


def test_digest_follows_the_weights_not_the_card(folder):
    before = load_generator(folder).digest
    (folder / "README.md").write_text("a card")
    assert load_generator(folder).digest == before
    (folder / "unet" / "config.json").write_text('{"sample_size": 16}')
    assert load_generator(folder).digest != before


def test_overlong_prompt_is_named_with_its_tokens(folder):
    generator = load_generator(folder)
    generator.check(["digit one"], ["a photograph of digit one : round a"])  # 8 tokens: just fits
    with pytest.raises(UserError, match=r"'a photograph .*' has 9 tokens, but .* reads 8; shorten.*nothing is cut"):
        generator.check(["digit one"], ["a photograph of digit one : round round a"])


def test_concepts_that_cannot_be_painted_are_named(folder):
    load_generator(folder).check(["Laysan albatross"])  # a general model: nothing is known against it
    (folder / "paintable.json").write_text(json.dumps({"concepts": {"characters": ["digit one"]}}))
    with pytest.raises(UserError, match=r"cannot paint 'Laysan albatross' \(and 1 more\).*name a Stable"):
        load_generator(folder).check(["Laysan albatross", "digit one", "mallard"])


def test_broken_settings_file_is_named(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match=r"scheduler_config\.json is not JSON"):
        load_generator(folder)


@WEIGHTS
@pytest.mark.parametrize("realm", ["handwritten characters", "ornaments and shapes"])
def test_embedded_generator_reads_every_kept_prompt_without_torch(realm):
    concepts = foresee(realm)[0].concepts
    load_generator("embedded").check([one.name for one in concepts], [one.prompt for one in concepts])
    code = (
        "import sys; from cilkit.synthesis import load_generator; g = load_generator('embedded'); g.digest; "
        "g.check(['digit one'], ['A photograph of digit one']); print({'torch', 'diffusers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@WEIGHTS
def test_embedded_generator_paints_the_same_bytes_on_any_number_of_threads():
    import torch

    generator = load_generator("embedded", steps=2)
    batch = (["A photograph of digit one", "A photograph of heart: large"], [11, 12], ["digit one", "heart"])
    first = generator.paint(*batch)
    assert first.shape == (2, generator.size, generator.size, 3) and first.dtype == np.uint8
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert (generator.paint(*batch) == first).all()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    other = generator.paint(batch[0], [11, 13], batch[2])
    assert np.abs(other[0].astype(int) - first[0]).max() <= 1 and (other[1] != first[1]).any()  # a seed an image


@WEIGHTS
def test_corrupt_weights_are_one_sentence(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "broken")
    weights = next(Path(tmp_path, "broken", "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded .*restore it"):
        load_generator(tmp_path / "broken").paint(["A photograph of heart"], [1], ["heart"])


@WEIGHTS
@pytest.mark.slow
def test_embedded_generator_in_two_processes_paints_the_same_bytes_as_in_one(tmp_path):
    generator = load_generator("embedded", steps=2)
    plan = make_plan(foresee("handwritten characters")[0].first(6), 5, seed=1, batch_size=8, generator=generator)
    for workers in (1, 2):
        paint_plan(plan, generator, tmp_path / str(workers), workers=workers, shard_size=16)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert one == two and len(one) == 3
    assert open_set(tmp_path / "2").manifest["steps"].unique().tolist() == [2]  # settings reach the workers
