"""Diffusers pipelines of tiny random parts, saved in the real format: what the generators are tested on offline.

`write(kind, folder)` saves one; KINDS lists them. Images are 32 x 32 (64 for FLUX), a step takes milliseconds.
"""

import json
from pathlib import Path

import numpy as np

from cilkit.synthesis.generators import EMBEDDED

WORDS = "a photo photograph of the digit one two three heart bird red blue round large small :".split()
PROMPTS = ["a red bird", "the digit two : large", "a red bird", "a photograph of the heart"]
SEEDS = [11, 12, 13, 2**62 + 5]
FEW = {"steps": 3, "size": 32, "guidance": 3.0}
LABELS = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark, white shark"}


def close(a, b) -> bool:
    """At most one grey level apart on 99.9 % of the pixels."""
    return float((np.abs(a.astype(int) - b) <= 1).mean()) >= 0.999


def write(kind: str, folder, seed: int = 0) -> Path:
    """Save the pipeline `kind` into `folder`; the same weights for the same seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KINDS[kind]()
    pipeline.save_pretrained(folder)
    if kind == "dit":  # the published folder's index holds the names; save_pretrained leaves them out
        index = Path(folder) / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": LABELS}))
    return Path(folder)


def clip_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", model_max_length=77)  # as CLIP's; ours reads 40


def clip_text(projected: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    config = T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def vae(latents: int = 4, **more):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        **more,
    ).eval()


def unet(**more):
    from diffusers import UNet2DConditionModel

    settings = {"cross_attention_dim": 16} | more
    network = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **settings,
    )
    for name, weight in network.named_parameters():
        if "attn2.to_out" in name and weight.dim() == 2:
            weight.data *= 20  # so that the prompt can be seen in the image
    return network.eval()


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def safety_checker():
    """One whose thresholds a test can set: `concept_embeds_weights`."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()


def stable_diffusion(image_to_image: bool = False):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    kind = StableDiffusionImg2ImgPipeline if image_to_image else StableDiffusionPipeline
    return kind(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=safety_checker(),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )


def stable_diffusion_xl():
    from diffusers import StableDiffusionXLPipeline

    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "cross_attention_dim": 32,
    }
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(**added),
        scheduler=scheduler(),
        add_watermarker=False,
    )


def stable_diffusion_3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, encoder = t5()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5_of(encoder, 32),
        tokenizer_3=tokenizer,
    )


def _t5_of(encoder, width: int):
    from transformers import T5EncoderModel

    encoder.config.d_model = width
    return T5EncoderModel(encoder.config).eval()


def flux():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, encoder = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer.eval(),
    )


def pixart():
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer, encoder = t5()
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


def dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(transformer.eval(), vae(), DDIMScheduler(clip_sample=False), id2label=LABELS)


def latent_consistency():
    """Of none of the families whose encode_prompt is known; reads no negative prompt."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unconditional():
    """Paints what it likes: no text, no class."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks)
    return DDPMPipeline(network.eval(), DDPMScheduler())


KINDS = {
    "sd": stable_diffusion,
    "sd-img2img": lambda: stable_diffusion(image_to_image=True),
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "pixart": pixart,
    "dit": dit,
    "lcm": latent_consistency,
    "ddpm": unconditional,
}
