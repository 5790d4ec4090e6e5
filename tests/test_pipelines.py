"""What is done to a diffusers pipeline before it paints: step caching, schedulers, LoRAs."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from tiny_pipelines import FEW, PROMPTS, SEEDS, close

from cilkit.errors import UserError
from cilkit.synthesis import load_generator, pipelines


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
