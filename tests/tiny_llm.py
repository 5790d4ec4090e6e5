"""A causal language model small enough to ask in a second: random weights, saved in the real transformers format.

Its tokenizer has a token for each byte, and a chat template. It babbles in small letters: random weights, but for a
bias in the output that makes words of a few letters and lists of a few words, where a constraint asks for them.
"""

from pathlib import Path

CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# Logits that suit temperatures from 0.2 to 1: a word ends after some 8 letters, a list after some 5 entries.
LIKING = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 0.0) | {"\u0120": -0.2, '"': 0.26, "{": -1.0, ",": -2.7, "]": -3.0}
CARD = "---\nlicense: mit\n---\nRandom weights, for tests.\n"


def write(folder, seed=0, chat=CHAT, card=CARD, context=4096, padding=0):
    """Save the model, its tokenizer and its card. padding: rows of the output layer that stand for no token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = Path(folder)
    words = tokenizer(chat)
    words.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(words) + padding, n_embd=32, n_head=2, n_layer=2, n_positions=context, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        last = model.transformer.ln_f
        last.weight[0], last.bias[0] = 0, 1  # feature 0 is always one, so the output layer has a bias
        model.lm_head.weight[:, 0] = torch.tensor(
            [LIKING.get(word, -9.0) for word in vocabulary(words)] + [9.0] * padding
        )
    model.save_pretrained(folder)
    (folder / "README.md").write_text(card)
    return folder


def vocabulary(words):
    return sorted(words.get_vocab(), key=words.get_vocab().get)


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
