import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import backbone, captioner, image_set, transformer

from cilkit.artifacts import sha256_of
from cilkit.captioning import aligning, assembled
from cilkit.errors import UserError

CAPTIONS = [f"this is a photo of a class {c}." for c in range(6)]
NAMES = ["cat", "cat fish", "Zürich", "dog_house", "🦊 fox", "naïve  café", "鳥", "a\tb", ""]


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in folder.rglob("*") if file.is_file()}


def tokens_of_images(count, seed=0):
    return torch.randn(count, 4, 16, generator=torch.Generator().manual_seed(seed))


def saved(folder, family="gpt2"):
    """A tiny language model of any family, and the default's tokenizer, as transformers saves them."""
    import transformers

    words = captioner(backbone()).tokenizer
    size = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    size |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    wide = {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    more = {
        "BertLMHead": {"intermediate_size": 32}, "Bloom": {}, "GPT2": {}, "Gemma2": wide, "Cohere": wide,
        "Granite": wide | {"logits_scaling": 4.0}, "Llama": wide | {"tie_word_embeddings": False},
    }  # fmt: skip
    config = getattr(transformers, f"{family.removesuffix('LMHead')}Config")(**size, **more[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ending = {"GPT2": "LMHeadModel", "BertLMHead": "Model"}.get(family, "ForCausalLM")
        getattr(transformers, family + ending)(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


# ------------------------------------------------------------ on disk


@pytest.mark.parametrize("lm", ["tiny", "GPT2"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, lm):
    lm = lm if lm == "tiny" else saved(tmp_path / "lm", lm)
    made = assembled.create(backbone(), CAPTIONS, lm=lm, dim=16, depth=1, seed=3)
    made.connector.standardise(3 + 2 * tokens_of_images(20))
    made.ends, shown = list(range(0, len(made.tokenizer), 6)), tokens_of_images(6)
    assembled.save(made, tmp_path / "one")
    again = assembled.load(tmp_path / "one")
    again.ends = made.ends
    assert again.tag == made.tag and torch.equal(again.prompt, made.prompt) and torch.equal(again.slots, made.slots)
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.write(shown) == made.write(shown)
    assert torch.equal(again.score(shown, again.trie_of(NAMES)), made.score(shown, made.trie_of(NAMES)))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.look(backbone(), pixels, "probe"), made.look(backbone(), pixels, "probe"))
    assembled.save(again, tmp_path / "two")
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_another_dtype_is_that_of_the_language_model(tmp_path):
    assembled.save(captioner(backbone()), tmp_path)
    found = assembled.load(tmp_path, "bfloat16")
    assert found.head.weight.dtype == torch.bfloat16 and found.connector.linear.weight.dtype == torch.float32
    assert found.nll(tokens_of_images(2), found.padded(NAMES[:2])).dtype == torch.float32
    assert len(found.write(tokens_of_images(2))) == 2


def test_the_seed_alone_decides_in_this_process_and_in_another(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assembled.save(captioner(backbone()), tmp_path / "here")
    assert torch.equal(torch.rand(3), expected)
    code = (
        "import sys; from pathlib import Path; from tiny import backbone, captioner; from cilkit.captioning import "
        "assembled; assembled.save(captioner(backbone()), Path(sys.argv[1]))"
    )
    there = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(there, check=True, cwd=Path(__file__).parent, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"})
    here = bytes_of(tmp_path / "here")
    assert bytes_of(tmp_path / "there") == here and "language_model/tokenizer.json" in here
    other = assembled.create(backbone(), CAPTIONS, dim=16, depth=1, seed=1)
    assert not torch.equal(other.head.weight, captioner(backbone()).head.weight)
    shuffled = assembled.create(backbone(), [*CAPTIONS[::-1], CAPTIONS[2]], dim=16, depth=1)
    assert shuffled.tokenizer.get_vocab() == captioner(backbone()).tokenizer.get_vocab()


def test_folders_that_hold_no_captioner_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no captioner that can be read"):
        assembled.load(tmp_path / "nowhere")
    assembled.save(captioner(backbone()), tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in bytes_of(tmp_path)}
    spoilt = {
        "captioner.json": [b"", b"[]", b"{}", files["captioner.json"][:-9]],
        "connector.safetensors": [b"", files["connector.safetensors"][:-4], b"\xff" * 100],
        "language_model/model.safetensors": [files["language_model/model.safetensors"][:-4]],
        "language_model/config.json": [b"{}"],
        "language_model/tokenizer.json": [b"{"],
    }
    for name, contents in spoilt.items():
        for content in [*contents, None]:
            (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=f"{tmp_path} holds no captioner that can be read"):
                assembled.load(tmp_path)
            (tmp_path / name).write_bytes(files[name])
    card = json.loads(files["captioner.json"])
    (tmp_path / "captioner.json").write_text(json.dumps(card | {"width": 17}))
    with pytest.raises(UserError, match="holds no captioner"):
        assembled.load(tmp_path)


# ------------------------------------------------------------ language models


@pytest.mark.parametrize("family", ["Gemma2", "Cohere", "Granite", "BertLMHead", "Bloom"])
def test_a_language_model_that_its_parts_do_not_make_up_is_refused(tmp_path, family):
    with pytest.raises(UserError, match="cannot be read part by part"):
        assembled.create(backbone(), CAPTIONS, lm=saved(tmp_path, family))


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    from transformers import AutoModel, ViTConfig, ViTModel

    with pytest.raises(UserError, match=f"{tmp_path}/nowhere' cannot be loaded"):
        assembled.create(backbone(), CAPTIONS, lm=str(tmp_path / "nowhere"))
    words = captioner(backbone()).tokenizer
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16)).save_pretrained(
        tmp_path / "vit"
    )
    words.save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="cannot be loaded .*ViTConfig"):
        assembled.create(backbone(), CAPTIONS, lm=str(tmp_path / "vit"))
    AutoModel.from_pretrained(saved(tmp_path / "llama", "Llama")).save_pretrained(tmp_path / "headless")
    words.save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match="its weights lack lm_head.weight"):
        assembled.create(backbone(), CAPTIONS, lm=str(tmp_path / "headless"))


def test_a_prompt_begins_as_the_tokenizer_begins_a_text(tmp_path):
    from tokenizers.processors import TemplateProcessing

    words, question = captioner(backbone()).tokenizer, "What {image}?"
    plain = assembled.create(backbone(), CAPTIONS, lm=saved(tmp_path, "GPT2"), question=question)
    assert plain.slots.tolist() == [0, 1, 2, 3] and words.decode(plain.prompt[4:]) == f"{question} "
    words.bos_token = words.eos_token
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    words.save_pretrained(tmp_path)
    begun = assembled.create(backbone(), CAPTIONS, lm=str(tmp_path), question=question)
    assert begun.slots.tolist() == [1, 2, 3, 4] and begun.prompt.tolist() == [0, *plain.prompt.tolist()]
    assert begun.tokens_of(["cat"]) == plain.tokens_of(["cat"])


def test_any_text_can_be_written(tmp_path):
    assembled.save(captioner(backbone()), tmp_path)
    for found in (captioner(backbone()), assembled.load(tmp_path)):
        for name, ids in zip(NAMES, found.tokens_of(NAMES), strict=True):
            assert found.tokenizer.decode(ids, skip_special_tokens=True) == name
            assert ids[-1] == found.tokenizer.eos_token_id
        assert max(map(len, found.tokens_of(CAPTIONS))) <= 11  # their words are tokens
    with pytest.raises(UserError, match="dim is 18; expected a multiple of 4"):
        assembled.create(backbone(), CAPTIONS, dim=18)


# ------------------------------------------------------------ images


def test_the_projection_brings_tokens_to_mean_0_and_spread_1():
    projection, tokens = assembled.Projection(5, 3), 7 + 4 * torch.randn(50, 4, 5)
    projection.standardise(tokens)
    with torch.no_grad():
        projection.linear.weight.copy_(torch.eye(3, 5))
        projection.linear.bias.zero_()
        found = projection(tokens)
    centred = tokens - tokens.mean((0, 1))
    assert torch.allclose(found, (centred / centred.std())[..., :3], atol=1e-5)
    projection.standardise(torch.ones(2, 4, 5))  # nothing to tell apart
    assert torch.isfinite(projection(torch.ones(2, 4, 5))).all()


def test_a_convolutional_networks_maps_are_averaged_to_a_grid():
    network, images = backbone().eval(), torch.randn(3, 3, 32, 32)
    maps = network.maps(images, "probe")  # (3, 16, 4, 4)
    whole = assembled.look(network, images, "probe", grid=0)
    assert torch.equal(whole, maps.flatten(2).transpose(1, 2)) and whole.shape == (3, 16, 16)
    quarters = [maps[:, :, row : row + 2, col : col + 2].mean((2, 3)) for row in (0, 2) for col in (0, 2)]
    assert torch.allclose(assembled.look(network, images, "probe", grid=2), torch.stack(quarters, 1), atol=1e-6)
    assert network.forwarded == {"probe": 9}
    made = assembled.create(network, CAPTIONS, grid=0, dim=16, depth=1)
    assert network.forwarded == {"probe": 9} and len(made.slots) == 16
    assert len(made.write(made.look(network, images, "probe"))) == 3
    with pytest.raises(UserError, match="came as 4 tokens and tiny has places for 16"):
        made.write(made.look(network, images[..., ::2, ::2], "probe"))


@pytest.mark.parametrize("grid", [0, 2])
def test_a_transformers_tokens_are_what_enters_its_last_block(grid):
    network, images, seen = transformer().eval(), torch.randn(3, 3, 16, 16), []
    network.model.blocks[-1].register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    network(images, "probe")
    assert torch.equal(assembled.look(network, images, "probe", grid), seen[0])
    made = assembled.create(network, CAPTIONS, grid=grid, dim=16, depth=1)
    assert len(made.slots) == seen[0].shape[1] == 17
    assert len(made.write(made.look(network, images, "probe"))) == 3


# ------------------------------------------------------------ pre-alignment


def begun():
    return assembled.create(backbone(), CAPTIONS, dim=32, depth=2)


def aligned(made, tokens, labels, scratch, epochs=3, lr=1e-2, noise=0.1):
    return aligning.align(
        made, tokens, labels, CAPTIONS, epochs=epochs, batch_size=8, lr=lr, noise=noise, seed=0, scratch=scratch
    )


@pytest.fixture(scope="module")
def painted():
    """What a backbone of random weights sees in two views of 48 images of six classes; their labels."""
    images = image_set()
    return aligning.seen(begun(), backbone().eval(), images, "shift", 2, seed=0), images.labels


def test_every_view_is_seen_once_and_the_first_as_it_is(painted):
    tokens, labels = painted
    assert tokens.shape == (2, len(labels), 4, 16)
    network, images, made = backbone().eval(), image_set(), begun()
    plain = aligning.seen(made, network, images, "shift", 1, seed=5)
    assert torch.equal(plain[0], tokens[0]) and not torch.equal(tokens[1], tokens[0])
    assert network.forwarded == {"student": len(labels)}
    again = aligning.seen(made, network, images, "shift", 3, seed=0)
    assert torch.equal(again[:2], tokens) and not torch.equal(again[1], again[2])


def test_an_aligned_captioner_writes_what_it_was_shown(painted, tmp_path):
    tokens, labels = painted
    made, expected = begun(), [CAPTIONS[label] for label in labels]
    before = made.write(tokens[0])
    assert not set(before) & set(CAPTIONS)
    losses = aligned(made, tokens[:1], labels, tmp_path, epochs=40)
    assert losses[0] > 4 and losses[-1] < 0.2 and len(losses) == 40  # log 287 = 5.7, of a random answer
    written = made.write(tokens[0])
    assert np.mean([one == other for one, other in zip(written, expected, strict=True)]) > 0.8
    best = made.score(tokens[0], made.trie_of(CAPTIONS)).argmax(1).numpy()
    assert (best == labels).mean() > 0.8
    assert not made.learning()
    centred = tokens[:1].flatten(0, 1) - made.connector.mean
    assert made.connector.scale * centred.std() == pytest.approx(1, rel=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_alignment_goes_on_to_the_same_bits(painted, tmp_path, monkeypatch, after):
    tokens, labels = painted
    steps = math.ceil(tokens.shape[0] * tokens.shape[1] / 8)
    whole, halted, resumed = begun(), begun(), begun()
    losses = aligned(whole, tokens, labels, tmp_path / "whole")
    nll, calls = halted.nll, []

    def breaking(*given):
        calls.append(1)
        if len(calls) == after * steps + steps // 2:
            raise Interrupted
        return nll(*given)

    monkeypatch.setattr(halted, "nll", breaking)
    with pytest.raises(Interrupted):
        aligned(halted, tokens, labels, tmp_path / "parts")
    nll, calls = resumed.nll, []
    monkeypatch.setattr(resumed, "nll", lambda *given: calls.append(1) or nll(*given))
    assert aligned(resumed, tokens, labels, tmp_path / "parts") == losses
    assert len(calls) == (3 - after) * steps  # whole epochs are not learnt again
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_loss_that_is_no_number_is_one_sentence_and_is_not_kept(painted, tmp_path):
    tokens, labels = painted
    with pytest.raises(UserError, match="the caption loss is nan in epoch [12]; lower lr"):
        aligned(begun(), tokens, labels, tmp_path, lr=1e30)
    if (tmp_path / aligning.EPOCH).exists():
        assert all(map(math.isfinite, aligned(begun(), tokens, labels, tmp_path, epochs=1)))


def test_losses_are_read_from_the_device_once_an_epoch(painted, tmp_path, monkeypatch):
    tokens, labels = painted
    read = []
    monkeypatch.setattr(aligning, "float", lambda value: read.append(value) or float(value), raising=False)
    losses = aligned(begun(), tokens, labels, tmp_path)
    assert len(read) == 1 + 3 and all(math.isfinite(loss) for loss in losses)  # and the projection's scale
