"""Diffusion pipelines of every family: prompts encoded once, seeds, repaints, classes, start images, memory."""

import json
import shutil
from importlib.util import find_spec
from inspect import signature

import numpy as np
import pytest
import tiny_pipelines

import cilkit
from cilkit.data.shards import ShardWriter
from cilkit.errors import UserError
from cilkit.synthesis import diffusion, load_generator, pipelines
from cilkit.synthesis.generators import EMBEDDED, OutOfMemory

PROMPTS = ["a red bird", "the digit two : large", "a red bird", "a photograph of the heart"]
SEEDS = [11, 12, 13, 2**62 + 5]
FEW = {"steps": 3, "size": 32, "guidance": 3.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> a saved pipeline, written when first asked for."""
    home, written = tmp_path_factory.mktemp("pipelines"), {}

    def folder(kind):
        if kind not in written:
            written[kind] = tiny_pipelines.write(kind, home / kind)
        return written[kind]

    return folder


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


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """At most one grey level apart on 99.9 % of the pixels."""
    return float((np.abs(a.astype(int) - b) <= 1).mean()) >= 0.999


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


def test_attention_caching_computes_every_second_step_and_forgets_between_calls(folders):
    generator = load_generator(folders("sd"), **FEW | {"steps": 4}, cache="attention-2")
    calls, network = [], generator.pipeline.unet
    attention = next(part for name, part in network.named_modules() if name.endswith("attn1"))
    attention.to_q.register_forward_hook(lambda *_: calls.append(1))
    first = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert len(calls) == 2
    generator.paint(PROMPTS[::-1], SEEDS[::-1], [""] * 4)
    assert (generator.paint(PROMPTS, SEEDS, [""] * 4) == first).all()
    full = load_generator(folders("sd"), **FEW | {"steps": 4}).paint(PROMPTS, SEEDS, [""] * 4)
    assert (full != first).any() and np.abs(full.astype(int) - first).mean() < 40


def test_first_block_caching_and_what_does_not_suit(folders):
    generator = load_generator(folders("flux"), **FEW | {"steps": 4}, cache="first-block-1000")
    first = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert (generator.paint(PROMPTS, SEEDS, [""] * 4) == first).all()
    assert (load_generator(folders("flux"), **FEW | {"steps": 4}).paint(PROMPTS, SEEDS, [""] * 4) != first).any()
    for cache in ("first-block-0.1", "attention-x", "deep"):
        with pytest.raises(UserError, match=f"cache='{cache}' does not suit UNet2DConditionModel"):
            load_generator(folders("sd"), **FEW, cache=cache).paint(PROMPTS[:1], SEEDS[:1], [""])


def test_scheduler_by_short_name_or_class_keeps_the_noise_schedule(folders):
    generator = load_generator(folders("sd"), **FEW, scheduler="dpm++", scheduler_options={"use_karras_sigmas": True})
    assert generator.settings["scheduler"] == "DPMSolverMultistepScheduler"
    config = generator.pipeline.scheduler.config
    assert (config.beta_end, config.use_karras_sigmas) == (0.012, True)
    assert not close(
        generator.paint(PROMPTS, SEEDS, [""] * 4), load_generator(folders("sd"), **FEW).paint(PROMPTS, SEEDS, [""] * 4)
    )
    with pytest.raises(UserError, match=r"scheduler 'DPMSolver\+\+' is unknown"):
        load_generator(folders("sd"), **FEW, scheduler="DPMSolver++").paint(PROMPTS[:1], SEEDS[:1], [""])


@pytest.mark.parametrize("scheduler", [*pipelines.SCHEDULERS])
def test_an_image_is_its_own_under_every_scheduler(folders, scheduler):
    """Schedulers that add noise in a step draw it from the image's own generator, too."""
    generator = load_generator(folders("sd"), **FEW, scheduler=scheduler)
    images = generator.paint(PROMPTS, SEEDS, [""] * 4)
    assert close(images[1:3], generator.paint(PROMPTS[1:3], SEEDS[1:3], [""] * 2))


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
ENCODER = "encoder.layers.0.self_attn.q_proj"
PEFT = pytest.mark.skipif(find_spec("peft") is None, reason='the optional extra lora is not installed (".[lora]")')


def lora(weight, seed):
    """A LoRA's two matrices of rank 2 for this weight, and what they add to it, unscaled."""
    import torch

    random = torch.Generator().manual_seed(seed)
    down = torch.randn((2, *weight.shape[1:]), generator=random)
    up = torch.randn((len(weight), 2, *[1] * (weight.dim() - 2)), generator=random)
    return down, up, torch.einsum("or,r...->o...", up.reshape(len(weight), 2), down)


@pytest.fixture
def kohya(folders, tmp_path):
    """A LoRA with the names of kohya's scripts, alpha 3: (file, what it adds to each layer by 0.5)."""
    import torch
    from safetensors.torch import save_file

    pipeline, tensors, added = load_generator(folders("sd"), **FEW).pipeline, {}, {}
    for number, path in enumerate([ATTENTION, CONVOLUTION]):
        stem = "lora_unet_" + path.replace(".", "_")
        down, up, added[path] = lora(pipeline.unet.get_submodule(path).weight, number)
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors", {path: 0.5 * 3.0 / 2 * weight for path, weight in added.items()}


@PEFT
def test_lora_with_kohya_s_names_is_added_to_the_weights(folders, kohya):
    """W + scale (alpha / rank) B A, of a linear layer and a convolution; nothing of peft's is left in the network."""
    import torch

    file, added = kohya
    plainly, styled = load_generator(folders("sd"), **FEW), load_generator(folders("sd"), **FEW, loras=[f"{file}@0.5"])
    for path, addition in added.items():
        before = plainly.pipeline.unet.get_submodule(path).weight
        torch.testing.assert_close(styled.pipeline.unet.get_submodule(path).weight, before + addition)
    assert list(styled.pipeline.unet.state_dict()) == list(plainly.pipeline.unet.state_dict())
    assert styled.digest != plainly.digest and styled.settings["loras"] == ["style.safetensors@0.5"]
    assert styled.given["loras"] == [f"{file}@0.5"]
    images = styled.paint(PROMPTS[:2], SEEDS[:2], ["", ""])
    assert not close(images, plainly.paint(PROMPTS[:2], SEEDS[:2], ["", ""]))
    twice = load_generator(folders("sd"), **FEW, loras=[f"{file}@0.25", f"{file}@0.25"])
    assert close(twice.paint(PROMPTS[:2], SEEDS[:2], ["", ""]), images)


@PEFT
def test_lora_saved_by_diffusers_is_added_to_the_weights(folders, tmp_path):
    """The file that diffusers' training scripts write: U-Net and text encoder, alpha in the file's header."""
    import torch
    from diffusers import StableDiffusionPipeline

    before, layers = load_generator(folders("sd"), **FEW).pipeline, {}
    (down, up, addition), (text_down, text_up, text_addition) = (
        lora(network.get_submodule(path).weight, number)
        for number, (network, path) in enumerate([(before.unet, ATTENTION), (before.text_encoder, ENCODER)])
    )
    layers["unet_lora_layers"] = {f"{ATTENTION}.lora_A.weight": down, f"{ATTENTION}.lora_B.weight": up}
    layers["text_encoder_lora_layers"] = {f"{ENCODER}.lora_A.weight": text_down, f"{ENCODER}.lora_B.weight": text_up}
    for part, targets in {"unet": [ATTENTION], "text_encoder": [ENCODER]}.items():
        layers[f"{part}_lora_adapter_metadata"] = {"r": 2, "lora_alpha": 6, "target_modules": targets}
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers)
    after = load_generator(folders("sd"), **FEW, loras=[str(tmp_path)]).pipeline
    for name, path, added in (("unet", ATTENTION, addition), ("text_encoder", ENCODER, text_addition)):
        weights = [getattr(pipeline, name).get_submodule(path).weight for pipeline in (before, after)]
        torch.testing.assert_close(weights[1], weights[0] + 6 / 2 * added)


@PEFT
def test_lora_that_does_not_fit_is_one_sentence(folders, kohya, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    good, unfit = load_file(kohya[0]), tmp_path / "unfit.safetensors"

    def unknown(layer):
        return {f"lora_unet_{layer}.lora_{end}.weight": torch.zeros(2, 2) for end in ("down", "up")}

    for said, tensors in {
        "Target modules": unknown("nowhere"),
        "2 of its 3 layers fit": good | unknown("mid_block_gone"),
        "in loading state_dict": {
            n: t.repeat(1, 2) if n.endswith("to_q.lora_down.weight") else t for n, t in good.items()
        },
        "Invalid LoRA": {"unet.weight": torch.zeros(2)},
    }.items():
        save_file(tensors, unfit)
        generator = load_generator(folders("sd"), **FEW, loras=[str(unfit)])
        with pytest.raises(UserError, match=r"LoRA unfit\.safetensors cannot be merged into StableDiffusion") as error:
            generator.paint(PROMPTS[:1], SEEDS[:1], [""])
        assert said in str(error.value)
    unfit.write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be merged .*expected a safetensors file"):
        load_generator(folders("sd"), **FEW, loras=[str(unfit)]).paint(["a"], [1], [""])


def test_lora_without_peft_says_what_to_install(folders, kohya, monkeypatch):
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None)
    generator = load_generator(folders("sd"), **FEW, loras=[str(kohya[0])])
    for use in (lambda: generator.check(["x"], ["a"]), lambda: generator.pipeline):
        with pytest.raises(UserError, match=r'pip install -e "\.\[lora\]"'):
            use()


def test_lora_spec_holds_a_file_a_folder_or_a_hub_name_and_a_scale(kohya, tmp_path):
    file, _ = kohya
    assert pipelines.lora_file(str(file)) == (file, 1.0) and pipelines.lora_file(f"{tmp_path}@0.8") == (file, 0.8)
    assert pipelines.lora_file(f"{file}@-1") == (file, -1.0)
    shutil.copy(file, tmp_path / "a@b.safetensors")
    assert pipelines.lora_file(str(tmp_path / "a@b.safetensors"))[1] == 1.0
    with pytest.raises(UserError, match="is a folder with 2 safetensors files; name the file itself"):
        pipelines.lora_file(str(tmp_path))


def test_lora_that_is_nowhere_is_said_at_once(monkeypatch):
    """The hub is asked for "owner/name" only, and not to be reached is no reason to wait."""
    import huggingface_hub

    def unreachable(name):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    for name in ("style.safetensors", "models/style.safetensors", "./style", "/nowhere/style.safetensors"):
        with pytest.raises(UserError, match="is no file; expected one, a folder that holds one, or a hub's"):
            pipelines.lora_file(name)
    with pytest.raises(UserError, match=r"LoRA 'nobody/style' is neither .*hub \(Name or service not known\)"):
        pipelines.lora_file("nobody/style@0.5")


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
