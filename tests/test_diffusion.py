"""Diffusion pipelines of every family: prompts encoded once, seeds, repaints, classes, start images, memory."""

import json
import shutil
from inspect import signature

import numpy as np
import pytest
import tiny_pipelines
from tiny_pipelines import FEW, PROMPTS, SEEDS, close

import cilkit
from cilkit.data.shards import ShardWriter
from cilkit.errors import UserError
from cilkit.synthesis import diffusion, load_generator, pipelines
from cilkit.synthesis.generators import EMBEDDED, OutOfMemory


def plain(generator, prompts, seeds, **more):
    """The pipeline called as its documentation says: text in, one torch.Generator an image."""
    import torch

    made = generator.pipeline(
        prompts,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
        **more,
    )
    return np.round(255 * made.images).astype(np.uint8)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_kept_encodings_paint_what_the_plain_call_paints(folders, kind):
    generator = load_generator(folders(kind), **FEW)
    more = {"use_resolution_binning": False} if kind == "pixart" else {}
    images = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 10
    assert close(images, plain(generator, PROMPTS, SEEDS, **more))
    assert generator._encoder is not None and list(generator._encoder.kept) == list(dict.fromkeys(PROMPTS))
    assert (generator.paint(PROMPTS, SEEDS, [""] * 4) == images).all()  # now from what was kept
    assert close(images[1:2], generator.paint(PROMPTS[1:2], SEEDS[1:2], [""]))  # whatever the batch
    assert (images[0] != images[2]).any()  # the same prompt from another seed


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "pixart"])
def test_negative_prompt_is_read(folders, kind):
    generator = load_generator(folders(kind), **FEW, negative_prompt="blue")
    more = {"use_resolution_binning": False} if kind == "pixart" else {}
    images = generator.paint(PROMPTS[:2], SEEDS[:2], ["", ""])
    assert close(images, plain(generator, PROMPTS[:2], SEEDS[:2], negative_prompt=["blue"] * 2, **more))
    assert not close(images, load_generator(folders(kind), **FEW).paint(PROMPTS[:2], SEEDS[:2], ["", ""]))


def test_negative_prompt_that_would_be_ignored_is_refused(folders):
    with pytest.raises(UserError, match=r"'blue' would not be read: .* with guidance 1"):
        load_generator(folders("sd"), guidance=1.0, negative_prompt="blue")
    with pytest.raises(UserError, match="'blue' would not be read: flux paints without one"):
        load_generator(folders("flux"), negative_prompt="blue")


def test_encoding_does_not_depend_on_what_is_new_and_is_dropped_when_it_is_too_much(folders, monkeypatch):
    encoder = load_generator(folders("sd"), **FEW)._encoder
    alone = encoder(["a red bird"])["prompt_embeds"]
    encoder.kept.clear()
    assert (encoder(PROMPTS)["prompt_embeds"][2] == alone[0]).all()
    monkeypatch.setattr(pipelines, "HELD", 2 * alone.nbytes)
    assert (encoder([*PROMPTS, "a blue heart"])["prompt_embeds"][2] == alone[0]).all()
    assert list(encoder.kept) == ["a photograph of the heart", "a blue heart"]  # the last used two


def test_a_text_encoder_s_forward_passes_are_one_a_distinct_prompt(folders):
    generator, calls = load_generator(folders("sd"), **FEW), []
    generator.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    generator.paint(PROMPTS, SEEDS, [""] * 4)
    generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert len(calls) == 3 + 2  # three distinct prompts, and the first call also encodes "" for the guidance


def test_embedded_prompts_encoded_one_by_one_are_bit_equal_to_those_of_a_batch():
    """Committed studies were painted with whole batches encoded at once."""
    generator = load_generator("embedded", steps=2)
    prompts = [f"A photograph of {name}: light, on dark grey" for name in ("heart", "digit one", "star", "heart")]
    images, more = generator.paint(prompts, SEEDS, ["heart"] * 4), {"height": 32, "width": 32}
    import torch

    seeds = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    whole = generator.pipeline(prompts, num_inference_steps=2, guidance_scale=5.0, generator=seeds, **more)
    assert (images == np.stack([np.array(image) for image in whole.images])).all()


def test_families_take_and_return_what_the_table_says():
    """Against the installed diffusers: every name is one that the call takes back, T5's default lengths are known."""
    import diffusers

    for kind, names in pipelines.ENCODED.items():
        for suffix in ("Pipeline", "Img2ImgPipeline"):
            pipeline = getattr(diffusers, kind + suffix, None)
            if pipeline is None:
                continue
            call = signature(pipeline.__call__).parameters
            assert set(filter(None, names)) <= set(call) and pipelines.family(pipeline.__name__) == kind
            length = call.get("max_sequence_length")
            assert (length.default if length else 0) == pipelines.T5_TOKENS.get(kind, 0)
    assert pipelines.family("HunyuanDiTPipeline") == pipelines.family("Flux2Pipeline") == ""


def test_an_unknown_family_is_handed_its_prompts_as_text(folders, tmp_path, monkeypatch):
    known = load_generator(folders("sd"), **FEW).paint(PROMPTS, SEEDS, [""] * 4)
    monkeypatch.setattr(pipelines, "ENCODED", {})
    other = load_generator(folders("sd"), **FEW)
    assert close(other.paint(PROMPTS, SEEDS, [""] * 4), known) and other._encoder is None


def test_a_pipeline_of_no_known_family_paints_its_prompts(folders):
    generator = load_generator(folders("lcm"), **FEW)
    images = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert generator._encoder is None and close(images, plain(generator, PROMPTS, SEEDS)) and images.std() > 10
    assert close(images[1:2], generator.paint(PROMPTS[1:2], SEEDS[1:2], [""]))


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("ddpm", {}, "DDPMPipeline takes no prompt; expected a pipeline that paints from text"),
        ("lcm", {"negative_prompt": "blue"}, "reads no negative_prompt; leave negative_prompt='blue' out"),
        ("dit", {"size": 64}, "DiTPipeline reads no size"),
        ("sd", {"strength": 0.3}, "StableDiffusionPipeline reads no strength"),
        ("sd", {"max_tokens": 9}, "StableDiffusionPipeline reads no max_tokens"),
        (
            "sd",
            {"scheduler_options": {"beta_strt": 1}},
            r"DDIMScheduler has no 'beta_strt' \(did you mean 'beta_start'",
        ),
        ("flux", {"scheduler": "ddim"}, "flux does not paint with these settings .*custom sigmas"),
    ],
)
def test_what_a_pipeline_would_not_read_is_refused(folders, kind, asked, said):
    generator = load_generator(folders(kind), **FEW | asked)
    with pytest.raises(UserError, match=said):
        generator.paint(PROMPTS[:1], SEEDS[:1], ["goldfish"])


def test_class_conditional_pipeline_paints_classes_by_name(folders):
    generator = load_generator(folders("dit"), **FEW)
    assert generator.conditioning == "class" and generator.classes["white shark"] == 2
    generator.check(["goldfish", "Tinca tinca"], ["a prompt of any length " * 50])
    with pytest.raises(UserError, match=r"cannot paint 'gold fish' \(did you mean 'goldfish'\?\)"):
        generator.check(["gold fish"])
    images = generator.paint(["", ""], [1, 1], ["tench", "Tinca tinca"])
    assert images.shape == (2, 32, 32, 3) and close(images[:1], images[1:])  # two names of one class
    assert not close(images[:1], generator.paint([""], [1], ["goldfish"]))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Two classes of start images, 40 x 48: dark and bright."""
    folder = tmp_path_factory.mktemp("start")
    writer = ShardWriter(folder)
    for i in range(6):
        row = {"image_id": f"{i}", "class_id": i % 2, "class_name": ("dark", "bright")[i % 2]}
        writer.add(np.full((40, 48, 3), (i % 2) * 200 + i, np.uint8), row)
    writer.close()
    return folder


@pytest.mark.parametrize("kind", ["sd-img2img", "sd", "sdxl"])
def test_image_to_image_begins_with_an_image_of_the_same_class(folders, start, kind):
    generator = load_generator(folders(kind), **FEW, start=str(start), strength=0.4)
    assert generator.conditioning == "image"
    generator.check(["dark", "bright"], ["a red bird"])
    with pytest.raises(UserError, match="cannot paint 'brigt' .*did you mean 'bright'"):
        generator.check(["brigt"])
    images = generator.paint(["a red bird"] * 2, [1, 1], ["dark", "bright"])
    assert images.shape == (2, 32, 32, 3) and not close(images[:1], images[1:])
    assert generator.digest != load_generator(folders(kind), **FEW).digest


def test_paint_makes_artifacts_from_start_images_and_from_classes(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    realm = cilkit.foresee("ornaments and shapes", classes=2)
    how = {"per_class": 2, "steps": 3, "size": 32, "workers": 1}
    start = cilkit.paint(realm, "font-renderings", per_class=3, workers=1)
    settings = {"start": str(start.artifact.path), "strength": 0.5}
    over = cilkit.paint(realm, str(folders("sd")), **how, negative_prompt="blue", settings=settings)
    recorded = json.loads(over.manifest["settings"][0])
    assert len(over) == 4 and recorded["start"] == start.artifact.path.name and recorded["strength"] == 0.5
    assert str(tmp_path) not in (over.artifact.path / "artifact.json").read_text()
    by_class = shutil.copytree(folders("dit"), tmp_path / "dit")
    index = json.loads((by_class / "model_index.json").read_text())
    index["id2label"] = dict(enumerate(realm.concept_names))
    (by_class / "model_index.json").write_text(json.dumps(index))
    images = cilkit.paint(realm, str(by_class), **how)
    assert images.class_names == realm.concept_names and images.images().std() > 5


def test_image_to_image_says_what_it_needs(folders, start):
    with pytest.raises(UserError, match="holds no manifest.parquet; expected the folder of an image set"):
        load_generator(folders("sd"), **FEW, start="nowhere")
    with pytest.raises(UserError, match=r"strength=0.3 of 3 steps is no step"):
        load_generator(folders("sd"), **FEW, start=str(start), strength=0.3)
    generator = load_generator(folders("pixart"), **FEW, start=str(start))
    with pytest.raises(UserError, match="PixArtSigmaPipeline takes no image; expected a pipeline"):
        generator.paint(["a"], [1], ["dark"])
    with pytest.raises(UserError, match="sd-img2img paints over images; name an image set"):
        load_generator(folders("sd-img2img"), **FEW).check(["dark"])


def test_start_images_are_square_of_the_class_and_chosen_by_the_seed(start):
    images = pipelines.StartImages(str(start))
    picked = images.of(["dark"] * 3 + ["bright"], [0, 1, 3, 0], 32)
    assert [image.size for image in picked] == [(32, 32)] * 4
    assert [image.getpixel((5, 5))[0] for image in picked] == [0, 2, 0, 201]


def flagging(generator, monkeypatch, rule):
    """Let the safety checker blank the images for whose first pixel-sum `rule` is true."""
    seen = []

    def check(clip_input, images):
        flags = [rule(len(seen) + i) for i in range(len(images))]
        seen.extend(flags)
        for image, flag in zip(images, flags, strict=True):
            image[flag] = 0
        return images, flags

    monkeypatch.setattr(generator.pipeline.safety_checker, "forward", check)


def test_blanked_images_are_painted_again_from_derived_seeds(folders, monkeypatch):
    generator = load_generator(folders("sd"), **FEW, safety_checker=True)
    flagging(generator, monkeypatch, lambda call: call in (1, 2, 4))  # 1 and 2 at first, 1 (the fifth) once more
    images = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert generator.repaints == {1: 1, 2: 2} or generator.repaints == {1: 2, 2: 1}
    twice = next(i for i, times in generator.repaints.items() if times == 2)
    seed = diffusion.derived_seed(SEEDS[twice], 2)
    unchecked = load_generator(folders("sd"), **FEW)
    assert close(images[twice][None], unchecked.paint([PROMPTS[twice]], [seed], [""]))
    assert close(images[[0, 3]], unchecked.paint(PROMPTS, SEEDS, [""] * 4)[[0, 3]]) and unchecked.repaints == {}
    flagging(generator, monkeypatch, lambda call: True)
    assert (generator.paint(PROMPTS[:1], SEEDS[:1], [""]) == 0).all()  # stays blank: curation's to reject
    assert generator.repaints == {0: diffusion.REPAINTS}


def test_the_real_safety_checker_runs_and_is_off_unless_asked_for(folders):
    import torch

    assert load_generator(folders("sd"), **FEW).pipeline.safety_checker is None
    generator = load_generator(folders("sd"), **FEW, safety_checker=True)
    with torch.no_grad():
        generator.pipeline.safety_checker.concept_embeds_weights.fill_(-2.0)  # every cosine is above its threshold
    assert (generator.paint(PROMPTS[:2], SEEDS[:2], ["", ""]) == 0).all() and len(generator.repaints) == 2


def test_images_that_are_not_finite_count_as_blank(folders, monkeypatch):
    generator = load_generator(folders("sd"), **FEW)
    decode, calls = generator.pipeline.vae.decode, []

    def broken(latents, *arguments, **named):
        calls.append(len(latents))
        made = decode(latents, *arguments, **named)
        if len(calls) == 1:
            made[0][1] = float("nan")
        return made

    monkeypatch.setattr(generator.pipeline.vae, "decode", broken)
    images = generator.paint(PROMPTS[:2], SEEDS[:2], ["", ""])
    assert calls == [2, 1] and generator.repaints == {1: 1} and images[1].std() > 5


def test_precision_is_recorded_only_where_asked_for_and_used(folders):
    import torch

    generator = load_generator(folders("sd"), **FEW)
    assert generator.precision == "fp32" and "precision" not in generator.settings
    half = load_generator(folders("sd"), **FEW, precision="bf16")
    assert half.pipeline.unet.dtype == torch.bfloat16 and half.settings["precision"] == "bf16"
    images = half.paint(PROMPTS, SEEDS, [""] * 4)
    assert np.abs(images.astype(int) - generator.paint(PROMPTS, SEEDS, [""] * 4)).mean() < 10
    with pytest.raises(UserError, match="precision='half'; expected one of auto, fp32, fp16, bf16"):
        load_generator(folders("sd"), precision="half")


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux"])
def test_pixels_are_the_same_without_accelerate(folders, kind, monkeypatch):
    """It comes with peft, and diffusers loads by it where it is there; SD 3 in half precision needs a cast without."""
    for precision in ("fp32", "bf16"):
        images = load_generator(folders(kind), **FEW, precision=precision).paint(PROMPTS[:1], SEEDS[:1], [""])
        with monkeypatch.context() as patch:
            patch.setattr(diffusion, "find_spec", lambda name: None)
            without = load_generator(folders(kind), **FEW, precision=precision).paint(PROMPTS[:1], SEEDS[:1], [""])
        assert (images == without).all(), precision


def test_execution_options_change_neither_record_nor_digest(folders):
    plainly = load_generator(folders("sd"), **FEW)
    fast = load_generator(folders("sd"), **FEW, channels_last=True, device="cpu", compile=False)
    assert (fast.settings, fast.digest) == (plainly.settings, plainly.digest)
    assert close(fast.paint(PROMPTS, SEEDS, [""] * 4), plainly.paint(PROMPTS, SEEDS, [""] * 4))


def test_compile_is_asked_of_the_denoiser(folders, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    assert load_generator(folders("sd"), **FEW, compile=True).pipeline is not None
    assert compiled == ["UNet2DConditionModel"]


@pytest.mark.parametrize(
    "error", ["OutOfMemoryError: CUDA out of memory", "RuntimeError: DefaultCPUAllocator: can't allocate memory: 9 GB"]
)
def test_running_out_of_memory_is_one_class_and_the_next_call_paints(folders, monkeypatch, error):
    import torch

    generator = load_generator(folders("sd"), **FEW)
    kind, text = error.split(": ", 1)
    expected = generator.paint(PROMPTS, SEEDS, [""] * 4)

    def full(*_, **__):
        raise getattr(torch, kind, RuntimeError)(text)

    with monkeypatch.context() as patch:
        patch.setattr(generator.pipeline.vae, "decode", full)
        with pytest.raises(OutOfMemory, match="paint fewer images at once"):
            generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert (generator.paint(PROMPTS, SEEDS, [""] * 4) == expected).all()


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(folders, monkeypatch):
    generator = load_generator(folders("sd"), **FEW)
    monkeypatch.setattr(generator.pipeline.vae, "decode", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shape")))
    with pytest.raises(RuntimeError, match="shape"):
        generator.paint(PROMPTS[:1], SEEDS[:1], [""])


def test_images_that_fit_follow_from_two_probes(folders, monkeypatch):
    """A device with 10 GB free whose calls need 1 GB and 0.2 GB an image: (0.9 · 10 − 1) / 0.2 = 40 images."""
    import torch

    gigabyte = 10**9
    assert diffusion.fitting(10 * gigabyte, int(1.2 * gigabyte), int(1.6 * gigabyte)) == 40
    assert diffusion.fitting(gigabyte, 2 * gigabyte, 3 * gigabyte) == 1  # at least try
    generator = load_generator(folders("sd"), **FEW)
    assert generator.most_at_once() == 0  # a CPU
    asked = []

    def once(prompts, seeds, concepts, steps=0):
        asked.append(len(prompts))

    monkeypatch.setattr(generator, "_once", once)
    monkeypatch.setattr(generator, "device", "cuda")
    for name, value in {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 5 * gigabyte,
        "max_memory_allocated": lambda device: 6 * gigabyte + asked[-1] * gigabyte // 5,
        "mem_get_info": lambda device: (10 * gigabyte, 80 * gigabyte),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert generator.most_at_once() == generator.most_at_once() == 40 and asked == [1, 1, 3]


def test_the_smallest_text_encoder_rules(folders, tmp_path):
    words = "a red bird round " * 20  # CLIP's 77 tokens are the fewest; T5's 256 is not reached
    for kind in ("sd", "sdxl", "sd3", "flux"):
        generator = load_generator(folders(kind))
        assert generator.tokens(["a red bird"])[1] == 77
        with pytest.raises(UserError, match=r"tokens, but .* reads 77; shorten"):
            generator.check(["x"], [words])
    assert load_generator(folders("pixart")).tokens(["a red bird", "bird"]) == ([4, 2], 300)
    assert load_generator(folders("pixart"), max_tokens=120).tokens(["bird"]) == ([2], 120)
    shutil.copytree(folders("pixart"), tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "tokenizer")
    assert load_generator(tmp_path / "none").tokens(["a red bird"]) == ([3], 0)


def test_tokens_of_embedded_count_what_its_tokenizer_gives():
    counts, limit = load_generator("embedded").tokens(["A photograph of digit one", "heart"])
    tokenizer = tiny_pipelines.clip_tokenizer()
    assert limit == 40
    assert counts == [len(tokenizer(text)["input_ids"]) for text in ("A photograph of digit one", "heart")]


def test_digest_of_a_hub_cache_is_that_of_the_files(folders, tmp_path):
    """The hub's cache links to files named by their sha256: the same digest, without reading them."""
    import hashlib

    target = tmp_path / "snapshot"
    shutil.copytree(folders("dit"), target)
    for file in target.rglob("*.safetensors"):
        blob = tmp_path / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        file.symlink_to(blob)
    assert load_generator(target).digest == load_generator(folders("dit")).digest


def test_licence_comes_from_the_preset_or_the_model_card(folders, tmp_path):
    shutil.copytree(folders("dit"), tmp_path / "model")
    assert load_generator(tmp_path / "model").licence == ""
    (tmp_path / "model" / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# license: none")
    assert load_generator(tmp_path / "model").licence == "cc-by-nc-4.0"
    assert load_generator(tmp_path / "model", preset="sd15").licence == "creativeml-openrail-m"
    assert load_generator("embedded").licence and (EMBEDDED / "model_index.json").exists()


def test_settings_that_make_no_sense_are_named(folders):
    for asked, said in {
        "steps": "0; expected a whole number, 1 or more",
        "size": "0; expected pixels",
    }.items():
        with pytest.raises(UserError, match=f"{asked}={said}"):
            load_generator(folders("sd"), **{asked: 0})
    for asked, value in {
        "steps": "3",
        "guidance": "high",
        "loras": "style.safetensors",
        "negative_prompt": ["x"],
    }.items():
        with pytest.raises(UserError, match=f"setting {asked}=.*; expected a"):
            load_generator(folders("sd"), **{asked: value})
    with pytest.raises(UserError, match="sdxl has no safety checker; leave safety_checker out"):
        load_generator(folders("sdxl"), safety_checker=True)
    with pytest.raises(UserError, match=r"'guidence' is unknown \(did you mean 'guidance'\?\)"):
        load_generator(folders("sd"), guidence=2)
    settings = load_generator(folders("sd"), **FEW, cache="attention-2").settings
    assert json.loads(json.dumps(settings)) == settings and settings["cache"] == "attention-2"


def test_older_folders_hold_the_tokenizer_as_vocabulary_and_merges(folders, tmp_path):
    """As Stable Diffusion 1.x was published: no tokenizer.json."""
    shutil.copytree(folders("sd"), tmp_path / "old")
    where = tmp_path / "old" / "tokenizer"
    tiny_pipelines.clip_tokenizer().backend_tokenizer.model.save(str(where))
    (where / "tokenizer.json").unlink()
    assert {"vocab.json", "merges.txt"} <= {file.name for file in where.iterdir()}
    old, new = load_generator(tmp_path / "old", **FEW), load_generator(folders("sd"), **FEW)
    assert old.tokens(PROMPTS) == new.tokens(PROMPTS)
    assert (old.paint(PROMPTS[:1], SEEDS[:1], [""]) == new.paint(PROMPTS[:1], SEEDS[:1], [""])).all()
