"""Vision-language models of tiny random parts, saved in the real format of four families.

`write(kind, folder)` saves model, tokenizer, processor and, where the family has one, chat template; KINDS lists them.
Images are 28 or 32 pixels a side; the tokenizer has a token for each byte. Weights are large, so that an answer depends
on the image. SmolVLM's first models are Idefics3's to transformers (read in their config.json), and so is this one.
"""

from pathlib import Path

import tiny_llm

CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PROMPT = {"blip2": "{image}Question: What is this photo of? Answer:"}  # of a family that has no chat template
SPREAD = 0.3  # of the weights
EYE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write(kind: str, folder, seed: int = 0) -> Path:
    """Save the model `kind` into `folder`; the same weights for the same seed."""
    import torch

    words = tiny_llm.tokenizer(chat="")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, processor = KINDS[kind](words)
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                torch.nn.init.normal_(weight, std=SPREAD)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def token(words, *names) -> int:
    """The last one's number, after they have become special tokens."""
    words.add_special_tokens({"additional_special_tokens": ["<|start|>", *names]})
    return words.convert_tokens_to_ids(names[-1])


def language(words, **more) -> dict:
    """Settings that decoders share."""
    shared = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return {**shared, **ends, "max_position_embeddings": 512, "tie_word_embeddings": False, **more}


def llava(words):
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    image = token(words, "<image>")
    eye = CLIPVisionConfig(**EYE, image_size=28, patch_size=14)
    speaker = LlamaConfig(**language(words, intermediate_size=64))
    config = LlavaConfig(
        vision_config=eye, text_config=speaker, image_token_index=image, image_seq_length=4, tie_word_embeddings=False
    )
    eyes = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        eyes, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def blip2(words):
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    image = token(words, "<image>")
    asked = Blip2QFormerConfig(**EYE, encoder_hidden_size=16, vocab_size=30, cross_attention_frequency=1)
    speaker = OPTConfig(**language(words, ffn_dim=64, word_embed_proj_dim=32))
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**EYE, image_size=28, patch_size=14), qformer_config=asked,
        text_config=speaker, num_query_tokens=4, image_token_index=image, tie_word_embeddings=False,
    )  # fmt: skip
    eyes = BlipImageProcessor(size={"height": 28, "width": 28})
    return Blip2ForConditionalGeneration(config), Blip2Processor(eyes, words, num_query_tokens=4)


def smolvlm(words):
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    image = token(words, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<image>")
    config = Idefics3Config(
        vision_config={**EYE, "model_type": "idefics3_vision", "image_size": 32, "patch_size": 8}, scale_factor=2,
        text_config=LlamaConfig(**language(words, intermediate_size=64)), image_token_id=image,
        pad_token_id=words.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    eyes = Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(eyes, words, image_seq_len=4, chat_template=CHAT.replace("IMAGE", "<image>"))
    return Idefics3ForConditionalGeneration(config), processor


def qwen2vl(words):
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")
    image = token(words, *marks)
    begins, ends, video, _ = words.convert_tokens_to_ids(marks)
    eye = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}  # of a head's 8 / 2 angles
    speaker = language(words, intermediate_size=64, num_key_value_heads=2, rope_parameters=rope)
    config = Qwen2VLConfig(
        text_config=speaker, vision_config=eye, image_token_id=image, video_token_id=video,
        vision_start_token_id=begins, vision_end_token_id=ends, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), processor


KINDS = {"llava": llava, "blip2": blip2, "smolvlm": smolvlm, "qwen2vl": qwen2vl}
