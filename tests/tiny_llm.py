"""A causal language model small enough to ask in a second: random weights, saved in the real transformers format.

Its tokenizer has a token for each byte, and a chat template; what it says is noise, so that only a constraint makes it
say JSON.
"""

from pathlib import Path

CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CARD = "---\nlicense: mit\n---\nRandom weights, for tests.\n"


def write(folder, seed=0, chat=CHAT, card=CARD, context=4096, padding=0):
    """Save the model, its tokenizer and its card. padding: rows of the output layer that stand for no token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    words = tokenizer(chat)
    words.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words) + padding, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "README.md").write_text(card)
    return folder


def tokenizer(chat=CHAT):
    """Bytes, nothing merged, and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    words = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=["<|start|>"]
    )
    words.chat_template = chat or None
    return words
