"""A generator fitted on a folder of images: a few steps, loaded and painted through the ordinary road."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cilkit
from cilkit.errors import UserError
from cilkit.realms.realm import Concept, Realm
from cilkit.synthesis.generators import load_generator

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NAMES = ["bag (handbag)", "dress", "ankle boot"]
FEW = ["--steps", "3", "--vae-steps", "2", "--text-steps", "30", "--batch", "4"]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))  # the scripts import one another by name
    spec = importlib.util.spec_from_file_location("fit_generator", SCRIPTS / "fit_generator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))


def lay_out(folder: Path, size=32, names=NAMES) -> Path:
    """Four images a class, each class of its own brightness."""
    random = np.random.default_rng(0)
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(60 * k, 60 * k + 60, (size, size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(script, tmp_path_factory):
    home = tmp_path_factory.mktemp("fitted")
    images = lay_out(home / "images")
    script.main(["--images", str(images), "--out", str(home / "generator"), *FEW])
    return home


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/*.safetensors")}


def test_the_folder_is_a_generator_that_paints_its_classes_and_no_others(fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    generator = load_generator(fitted / "generator")
    assert (generator.size, generator.settings["guidance"], generator.conditioning) == (32, 2.0, "text")
    generator.check(NAMES, [f"a photo of a {name}" for name in NAMES])
    with pytest.raises(UserError, match="cannot paint 'trouser'"):
        generator.check(["trouser"])
    concepts = [Concept(name, "", f"A photograph of {name}", "") for name in NAMES]
    Realm("things to wear", "object", ("",), tuple(concepts)).save(tmp_path / "realm")
    realm = cilkit.foresee(str(tmp_path / "realm"))
    folder = str(fitted / "generator")
    painted = cilkit.paint(realm, folder, per_class=2, style="plain", steps=2, guidance=1.5, workers=1)
    assert painted.class_names == NAMES and painted.counts.tolist() == [2, 2, 2]
    assert painted.images().shape == (6, 32, 32, 3) and len(np.unique(painted.images(), axis=0)) == 6
    assert set(painted.manifest["prompt"]) == {f"a photo of a {name}" for name in NAMES}


def test_the_model_card_says_what_it_is_and_what_it_saw(fitted, script):
    card = (fitted / "generator" / "README.md").read_text()
    images, labels, _ = script.read_images(fitted / "images")
    digest = script.hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    for said in ("stand-in for Stable Diffusion", digest, "12 training", "| 3 of 3 |", "| 30 |", *NAMES):
        assert said in card
    told = json.loads((fitted / "generator" / "paintable.json").read_text())
    assert told["concepts"] == {"classes": sorted(NAMES)} and told["made"]["steps_trained"] == 3


def test_an_interrupted_fit_ends_in_the_same_bytes(fitted, script, tmp_path):
    """Every call stops after one step of the U-Net, for no minutes are left, and the next one goes on. The tokenizer
    is the first fit's, because another process breaks its ties between rare tokens otherwise."""
    shutil.copytree(fitted / "generator.work" / "tokenizer", tmp_path / "generator.work" / "tokenizer")
    given = ["--images", str(fitted / "images"), "--out", str(tmp_path / "generator"), *FEW, "--minutes", "0"]
    trained = []
    for _ in range(3):
        script.main(given)
        trained.append(json.loads((tmp_path / "generator" / "paintable.json").read_text())["made"]["steps_trained"])
    assert trained == [1, 2, 3]
    assert weights(tmp_path / "generator") == weights(fitted / "generator")


def test_the_text_encoder_learns_to_carry_the_name(script, capsys):
    """The caption's class is read off the end token and the padding, and chance is a third."""
    import train_generator

    names = ["a dress", "ankle boot", "bag"]
    tokenizer = train_generator.make_tokenizer(names)

    def draw(rng, batch):
        labels = rng.integers(3, size=batch)
        return [names[k] for k in labels], [[int(k)] for k in labels]

    train_generator.train_text_encoder(tokenizer, draw, [3], 30, seed=0, batch=16)
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(last.split("concept read at ")[1].split()[0]) > 0.9


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda home: home / "nowhere", "holds no class folders"),
        (lambda home: lay_out(home / "large", size=28), "is 28 x 28, but the generator paints 32 x 32"),
        (lambda home: [lay_out(home / "gap", names=["dress"]), (home / "gap" / "bag").mkdir()][0], "'bag' has no"),
    ],
)
def test_images_that_cannot_be_fitted_are_one_sentence(script, tmp_path, broken, sentence):
    with pytest.raises(SystemExit, match=sentence):
        script.main(["--images", str(broken(tmp_path)), "--out", str(tmp_path / "generator"), *FEW])
    assert not (tmp_path / "generator").exists()


def test_checkpoints_of_other_settings_are_not_gone_on_from(fitted, script):
    given = ["--images", str(fitted / "images"), "--out", str(fitted / "generator"), *FEW, "--seed", "1"]
    with pytest.raises(SystemExit, match="checkpoints with seed=0, but 1 was asked for"):
        script.main(given)
