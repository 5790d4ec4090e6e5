"""Diffusion pipelines of every family: prompts encoded once, seeds, repaints, classes, start images, memory."""

import json
import shutil
from inspect import signature

import numpy as np
import pytest
import tiny_pipelines

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


def test_class_conditional_pipeline_paints_classes_by_name(folders):
    generator = load_generator(folders("dit"), **FEW)
    assert generator.conditioning == "class" and generator.classes["white shark"] == 2
    generator.check(["goldfish", "Tinca tinca"], ["a prompt of any length " * 50])
    with pytest.raises(UserError, match=r"no class 'gold fish' \(did you mean 'goldfish'\?\)"):
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
    with pytest.raises(UserError, match="no class 'brigt' .*did you mean 'bright'"):
        generator.check(["brigt"])
    images = generator.paint(["a red bird"] * 2, [1, 1], ["dark", "bright"])
    assert images.shape == (2, 32, 32, 3) and not close(images[:1], images[1:])
    assert generator.digest != load_generator(folders(kind), **FEW).digest


def test_image_to_image_without_start_images_says_what_it_needs(folders):
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


def test_guidance_of_some_steps_ends_where_it_says(folders):
    """All steps of guidance = the plain pipeline; later unguided steps are run on half the batch."""
    batches = []
    for kind in ("sd", "sdxl", "sd3"):
        generator = load_generator(folders(kind), **FEW | {"steps": 4}, guidance_until=0.5)
        network = pipelines.denoiser(generator.pipeline)
        hook = network.register_forward_pre_hook(
            lambda _, arguments, named: batches.append(len((arguments or [named.get("hidden_states")])[0])),
            with_kwargs=True,
        )
        images = generator.paint(PROMPTS, SEEDS, [""] * 4)
        hook.remove()
        assert batches == [8, 8, 4, 4], kind
        assert not close(images, load_generator(folders(kind), **FEW | {"steps": 4}).paint(PROMPTS, SEEDS, [""] * 4))
        batches.clear()
    for kind in ("pixart", "flux", "dit"):
        with pytest.raises(UserError, match="guides every step or none"):
            load_generator(folders(kind), **FEW, guidance_until=0.5).paint(PROMPTS[:1], SEEDS[:1], ["goldfish"])


def test_guidance_of_some_steps_equals_the_loop_by_hand(folders):
    """DDIM by hand: x0 and noise from the guided or the plain prediction (Song et al. 2021, eq. 12, eta = 0)."""
    import torch

    generator = load_generator(folders("sd"), **FEW | {"steps": 4}, guidance_until=0.5)
    images, pipe = generator.paint(PROMPTS[:1], SEEDS[:1], [""]), generator.pipeline
    with torch.no_grad():
        text, empty = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True)
        x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(SEEDS[0]))
        pipe.scheduler.set_timesteps(4)
        for step, t in enumerate(pipe.scheduler.timesteps):
            noise = pipe.unet(x, t, text).sample
            if step < 2:
                plain_noise = pipe.unet(x, t, empty).sample
                noise = plain_noise + 3.0 * (noise - plain_noise)
            x = pipe.scheduler.step(noise, t, x).prev_sample
        picture = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    by_hand = (255 * (picture / 2 + 0.5).clamp(0, 1)).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert close(images, by_hand)
    assert not close(images, load_generator(folders("sd"), **FEW | {"steps": 4}).paint(PROMPTS[:1], SEEDS[:1], [""]))


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


@pytest.mark.parametrize("named", ["kohya", "peft"])
def test_lora_is_added_to_the_weights(folders, tmp_path, named):
    """W + scale (alpha / rank) B A, for a linear layer and a convolution, against the same written out."""
    import torch
    from safetensors.torch import save_file

    random, tensors = torch.Generator().manual_seed(0), {}
    before = load_generator(folders("sd"), **FEW).pipeline.unet
    paths = ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"]
    expected = {}
    for path in paths:
        weight = before.get_submodule(path).weight.detach()
        down = torch.randn((2, *weight.shape[1:]), generator=random)
        up = torch.randn((len(weight), 2, *[1] * (weight.dim() - 2)), generator=random)
        share = 0.5 * (3.0 / 2 if named == "kohya" else 1.0)
        expected[path] = weight + share * torch.einsum("or,r...->o...", up.reshape(len(weight), 2), down)
        if named == "kohya":
            stem = "lora_unet_" + path.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(3.0)
        else:
            tensors |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    save_file(tensors, tmp_path / "style.safetensors")
    generator = load_generator(folders("sd"), **FEW, loras=[f"{tmp_path}@0.5"])
    for path, weight in expected.items():
        torch.testing.assert_close(generator.pipeline.unet.get_submodule(path).weight, weight)
    assert generator.digest != load_generator(folders("sd"), **FEW).digest
    save_file({"lora_unet_nowhere.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match="changes 'lora_unet_nowhere', which StableDiffusionPipeline has not"):
        load_generator(folders("sd"), **FEW, loras=[str(tmp_path)]).paint(PROMPTS[:1], SEEDS[:1], [""])


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
        "steps": "0; expected 1 or more",
        "guidance_until": "0; expected a share",
        "size": "0; expected pixels",
    }.items():
        with pytest.raises(UserError, match=f"{asked}={said}"):
            load_generator(folders("sd"), **{asked: 0})
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
