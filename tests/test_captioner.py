from functools import partial

import numpy as np
import pytest
import torch
from tiny import backbone, captioner
from torch import nn

from cilkit.captioning import assembled
from cilkit.captioning import captioner as module
from cilkit.captioning.captioner import IGNORED, PARTS, Captioner
from cilkit.errors import UserError

FAMILIES = ("llama", "gpt2", "opt")
NAMES = ["cat", "cat fish", "dog", "catalogue", "a", "cat fish bone", "émeu", "dog_house"]
ANSWERS = ["this is a photo of a class 3.", "cat", "a much longer answer ☃", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Language models of three families, which place words by rotation or by learned vectors, as transformers saves
    them: wide random weights, so that images matter, and dropout, which must not act."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    words = captioner(backbone()).tokenizer
    own = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "attention_dropout": 0.1}
    made = {
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, intermediate_size=32, num_key_value_heads=1, initializer_range=0.3, **layers, **own
            )
        ),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, **own)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(hidden_size=16, ffn_dim=32, word_embed_proj_dim=8, dropout=0.1, init_std=0.3, **layers, **own)
        ),
    }
    found = {}
    for name, make in made.items():
        found[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make().save_pretrained(found[name])
        words.save_pretrained(found[name])
    return found


@pytest.fixture
def made(folders):
    """`made(family)`: a captioner over 4 tokens an image, with a projection that lets them matter."""

    def make(family, **settings):
        found = assembled.create(backbone(), [], lm=str(folders[family]), seed=1, **settings)
        nn.init.normal_(found.connector.linear.weight, std=0.3, generator=torch.Generator().manual_seed(1))
        return found

    return make


def images(count, seed=0, dtype=torch.float32):
    return torch.randn(count, 4, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs_of(found, image):
    """The prompt's vectors, literally: a word's own, or the image's in its place; (1, length, dim)."""
    seen = iter(found.connector(image))
    rows = [next(seen) if place in found.slots else found.embed(word) for place, word in enumerate(found.prompt)]
    return torch.stack(rows)[None]


def slow_nll(found, image, ids):
    """One image, one answer: the language model's own forward pass, token by token read from its logits."""
    model, prompt = found.parts["language_model"], inputs_of(found, image)
    labels = torch.tensor([[IGNORED] * prompt.shape[1] + ids])
    result = model(inputs_embeds=torch.cat([prompt, found.embed(torch.tensor([ids]))], 1), labels=labels)
    at = range(prompt.shape[1] - 1, prompt.shape[1] - 1 + len(ids))
    total = -sum(result.logits[0, place].log_softmax(-1)[token] for place, token in zip(at, ids, strict=True))
    assert float(result.loss) * len(ids) == pytest.approx(float(total), rel=1e-5)  # their loss, in float32
    return total


def slow_greedy(found, image, longest):
    """All from the start for every token; the tokens up to an end, without it."""
    model, ids = found.parts["language_model"], []
    while len(ids) < longest:
        inputs = torch.cat([inputs_of(found, image), found.embed(torch.tensor([ids], dtype=torch.int64))], 1)
        token = int(model(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax())
        if token in found.ends:
            break
        ids.append(token)
    return ids


def text_of(found, ids):
    return found.tokenizer.decode(ids, skip_special_tokens=True).strip()


# ------------------------------------------------------------ the loss


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_is_the_language_models_own_of_each_answer_alone_without_prompt_and_pads(made, family):
    found, shown = made(family).double(), images(4, dtype=torch.float64)
    rows = found.tokens_of(ANSWERS)
    assert [row[-1] for row in rows] == [found.tokenizer.eos_token_id] * 4 and rows[3] == rows[3][-1:]
    with torch.no_grad():
        expected = torch.stack([slow_nll(found, *pair) for pair in zip(shown, rows, strict=True)])
        table = found.padded(ANSWERS)
        assert (found.nll(shown, table) - expected).abs().max() < 1e-6
        wider = torch.cat([table, torch.full((4, 5), IGNORED)], 1)
        assert (found.nll(shown, wider) - expected).abs().max() < 1e-6
        assert (found.float().nll(shown.float(), table) - expected).abs().max() < 1e-4
        assert found.nll(shown.float(), table).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_projection_equal_finite_differences(made, family):
    found, shown = made(family), images(3, dtype=torch.float64)
    found.train_only("projection")
    found.double()
    for norm in found.modules():
        if "RMSNorm" in type(norm).__name__:  # which rounds to float32, whatever it is given
            norm.forward = partial(nn.functional.rms_norm, normalized_shape=(16,), weight=norm.weight, eps=1e-6)
    table, weight = found.padded(ANSWERS[:3]), found.connector.linear.weight
    found.nll(shown, table).sum().backward()
    slopes = []
    places = [(0, 0), (3, 7), (5, 5), (7, 1), (6, 15)]
    with torch.no_grad():
        for place in places:
            sides = []
            for step in (1e-6, -1e-6):
                weight[place] += step
                sides.append(float(found.nll(shown, table).sum()))
                weight[place] -= step
            slopes.append((sides[0] - sides[1]) / 2e-6)
    given = [float(weight.grad[place]) for place in places]
    assert min(map(abs, given)) > 1e-4
    np.testing.assert_allclose(given, slopes, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------ answers


@pytest.mark.parametrize("family", FAMILIES)
def test_write_is_greedy_decoding_that_computes_all_anew_and_transformers_own(made, family):
    found, shown = made(family), images(12)
    found.ends, found.longest = list(range(0, len(found.tokenizer), 6)), 12  # answers of many lengths
    with torch.no_grad():
        slow = [slow_greedy(found, image, found.longest) for image in shown]
        generated = [
            found.parts["language_model"].generate(
                inputs_embeds=inputs_of(found, image), do_sample=False, max_new_tokens=found.longest,
                eos_token_id=found.ends, pad_token_id=found.ends[0],
            )[0].tolist()
            for image in shown
        ]  # fmt: skip
    assert len({len(ids) for ids in slow}) >= 3 and len({tuple(ids) for ids in slow}) >= 4
    assert [ids[:-1] if ids[-1] in found.ends else ids for ids in generated] == slow
    assert found.write(shown) == [text_of(found, ids) for ids in slow]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_and_a_score_depend_neither_on_the_batch_nor_on_its_order(made, family):
    found, shown = made(family), images(9)
    found.ends, found.longest = list(range(0, len(found.tokenizer), 6)), 12
    trie, order = found.trie_of(NAMES), torch.randperm(9, generator=torch.Generator().manual_seed(3))
    together, scores = found.write(shown), found.score(shown, trie)
    assert [text for image in shown for text in found.write(image[None])] == together
    assert found.write(shown[order]) == [together[place] for place in order]
    alone = torch.cat([found.score(image[None], trie) for image in shown])
    assert (alone - scores).abs().max() < 1e-4  # of numbers around -30, in float32
    assert (found.score(shown[order], trie) - scores[order]).abs().max() < 1e-4


class Dictated(nn.Module):
    """An output layer that says what stands in a table (batch, steps), whatever it is shown, and then `rest`."""

    def __init__(self, rows, words, rest):
        super().__init__()
        self.rows, self.words, self.rest, self.step = rows, words, rest, 0

    def forward(self, hidden):
        said = [row[self.step] if self.step < len(row) else self.rest for row in self.rows]
        self.step += 1
        return nn.functional.one_hot(torch.tensor(said), self.words).float()[:, None]


def dictated(answers, stop="", longest=40, rest="z"):
    """What is written where the language model wants to say these texts ("<end>" is its end) and then `rest`."""
    found = captioner(backbone())
    words = found.tokenizer
    rows = [words(text, add_special_tokens=False)["input_ids"] for text in answers]
    head = Dictated(rows, len(words), words(rest)["input_ids"][0])
    model, slots = found.parts["language_model"], found.slots.tolist()
    found = Captioner(
        found.connector, model, words, found.look, found.prompt.tolist(), slots, head=head, stop=stop, longest=longest
    )
    return found.write(images(len(answers))), head.step


def test_each_answer_ends_by_itself_and_the_others_go_on():
    # The released code stops a batch when one answer's last token is the end's: the others are cut there.
    said = ["<end>", "cat<end>", "this is a photo of a class 3.<end>", "a cat<end>fish<end>", "yyyyy"]
    written, steps = dictated(said)
    assert written == ["", "cat", "this is a photo of a class 3.", "a cat", "yyyyy" + "z" * 35]
    assert steps == 40
    assert dictated(said[:4])[1] < 20  # over when the last one has ended


def test_a_stop_mark_of_several_tokens_cuts_each_answer_alone():
    said = ["###", "cat ### dog", "a # b ## c###", "this is a photo of a class 1.### Human: what", "cat<end>"]
    written, steps = dictated(said, stop="###")
    assert written == ["", "cat", "a # b ## c", "this is a photo of a class 1.", "cat"]
    assert steps < 20
    assert dictated(["#" * 3], longest=2)[0] == ["##"]


@pytest.mark.parametrize("longest", [1, 7])
def test_no_answer_is_longer_than_longest(longest):
    written, steps = dictated(["", "zzz"], longest=longest)
    assert written == ["z" * longest] * 2 and steps == longest


def test_rows_of_the_output_layer_that_stand_for_no_token_are_never_written(made):
    found, shown = made("gpt2"), images(4)
    found.longest, words = 6, len(found.tokenizer)
    plain, wider = found.write(shown), nn.Linear(16, words + 9)
    with torch.no_grad():
        wider.weight[:words], wider.bias[:words], wider.bias[words:] = found.head.weight, 0, 1e4
    found.head = wider
    assert found.write(shown) == plain and any(plain)


# ------------------------------------------------------------ scores


def random_names():
    random, letters = np.random.default_rng(0), list("abcdefghijklmnopqrstuvwxyz ü_")
    return sorted({"".join(random.choice(letters, random.integers(1, 8))) for _ in range(130)})[:100]


@pytest.mark.parametrize("names", [NAMES, ["cat"], ["a", "b", "z"], ["cat", "cat fish"], random_names()], ids=len)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_over_a_trie_are_those_of_each_answer_alone(made, family, names):
    found, shown = made(family), images(3)
    table = found.padded(names)
    with torch.no_grad():
        expected = torch.stack([-found.nll(shown, row.expand(3, -1)) for row in table], 1)
        scores = found.score(shown, found.trie_of(names))
        assert scores.shape == (3, len(names)) and scores.dtype == torch.float32
        assert ((scores - expected) / expected).abs().max() < 1e-5
        found.double()
        exact = torch.stack([-found.nll(shown.double(), row.expand(3, -1)) for row in table], 1)
        assert (found.score(shown.double(), found.trie_of(names)) - exact).abs().max() < 1e-10


def test_an_answer_of_nothing_but_its_end_is_scored_by_the_prompts_last_place(made):
    found, shown = made("gpt2"), images(3)
    trie = found.trie_of([""])
    assert len(trie) == 0
    assert torch.allclose(found.score(shown, trie)[:, 0], -found.nll(shown, found.padded([""]).expand(3, -1)))


def test_scores_do_not_depend_on_how_many_images_are_scored_at_once(made, monkeypatch):
    found, shown = made("opt"), images(7)
    trie, sizes = found.trie_of(NAMES), []
    found.head.register_forward_hook(lambda head, given, logits: sizes.append(len(logits)))
    scores = found.score(shown, trie)
    assert sizes == [7]
    for together, expected in ((2, [2, 2, 2, 1]), (0, [1] * 7)):
        sizes.clear()
        monkeypatch.setattr(module, "NUMBERS", together * (len(trie) + 1) * len(found.tokenizer))
        assert (found.score(shown, trie) - scores).abs().max() < 1e-4
        assert sizes == expected


def test_the_prompt_is_computed_once_an_image_and_every_node_once(made):
    found, lengths = made("gpt2"), []
    found.decoder.h[0].register_forward_hook(lambda layer, given, out: lengths.append(given[0].shape[1]))
    trie = found.trie_of(NAMES)
    found.score(images(5), trie)
    assert lengths == [len(found.prompt), len(trie)]


# ------------------------------------------------------------ what is trained


def snapshot(found):
    return {name: value.detach().clone() for name, value in found.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_named_learns_and_nothing_else(made, family, part):
    found, shown = made(family), images(4)
    plain = found.nll(shown, found.padded(ANSWERS)).detach()
    names = set(dict(found.named_parameters()))
    found.train_only(part, rank=2)
    start = found.nll(shown, found.padded(ANSWERS))
    assert torch.equal(start.detach(), plain)  # new LoRAs add nothing
    before, learning = snapshot(found), {name for name, _ in found.learnt()}
    connector = {"connector.linear.weight", "connector.linear.bias"}
    if part == "lora":
        assert all("lora_" in name for name in learning - connector) and len(learning) > 4
    else:
        assert learning == (connector if part == "projection" else names)
    assert connector <= learning
    optimiser = torch.optim.SGD(found.learning(), 0.01)
    for _ in range(2):  # a LoRA's first matrix moves once the second is not 0
        optimiser.zero_grad()
        found.nll(shown, found.padded(ANSWERS)).sum().backward()
        optimiser.step()
    after = snapshot(found)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    unused = {name for name in learning if "embed_positions" in name}
    assert changed <= learning and learning - changed <= unused


def test_merged_loras_write_and_score_as_they_did_beside_the_weights(made):
    found, shown = made("llama"), images(4)
    found.train_only("lora", rank=2)
    for name, value in found.learnt():
        if "lora_B" in name:
            nn.init.normal_(value.data, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    trie = found.trie_of(NAMES)
    scores = found.score(shown, trie)
    merged = [layer for layer in found.decoder.modules() if hasattr(layer, "merge")]
    assert len(merged) == 2 * 7  # q, k, v, o, gate, up, down of each layer
    for layer in merged:
        layer.merge()
    assert (found.score(shown, trie) - scores).abs().max() < 1e-3
    for layer in merged:
        layer.unmerge()
        layer.enable_adapters(False)
    assert (found.score(shown, trie) - scores).abs().max() > 0.1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_change_neither_loss_nor_gradients_nor_answers(made, family, part):
    found = {recompute: made(family) for recompute in (False, True)}
    results, passes = {}, {}
    for recompute, one in found.items():
        one.train_only(part, rank=2, recompute=recompute)
        one.double()
        layer = [module for name, module in one.decoder.named_modules() if name.endswith(("self_attn", "attn"))][0]
        counted = []
        hook = layer.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        losses = one.nll(images(4, dtype=torch.float64), one.padded(ANSWERS))
        losses.sum().backward()
        hook.remove()
        passes[recompute] = len(counted)
        grads = {name: value.grad for name, value in one.learnt() if value.grad is not None}
        results[recompute] = losses.detach(), grads
    assert passes == {False: 1, True: 2}
    assert torch.equal(results[True][0], results[False][0])
    assert results[True][1].keys() == results[False][1].keys()
    for name, value in results[True][1].items():
        assert torch.allclose(value, results[False][1][name], rtol=1e-9, atol=1e-12), name
    plain, other = found.values()
    shown, trie = images(4, dtype=torch.float64), plain.trie_of(NAMES)
    plain.longest = other.longest = 6
    assert other.write(shown) == plain.write(shown)
    assert torch.equal(other.score(shown, trie), plain.score(shown, trie))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_stays_near(made, family):
    found, shown = made(family), images(4)
    found.train_only("projection")
    table, trie = found.padded(ANSWERS), found.trie_of(NAMES)
    plain, scores = found.nll(shown, table), found.score(shown, trie)
    plain.sum().backward()
    gradient, found.connector.linear.weight.grad = found.connector.linear.weight.grad, None
    found.precision, found.longest = "bf16", 5
    rounded = found.nll(shown, table)
    rounded.sum().backward()
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, plain)
    assert (rounded / plain - 1).abs().max() < 0.05
    assert (found.score(shown, trie) / scores - 1).abs().max() < 0.05
    near = torch.nn.functional.cosine_similarity(gradient.flatten(), found.connector.linear.weight.grad.flatten(), 0)
    assert near > 0.98
    assert len(found.write(shown)) == 4


# ------------------------------------------------------------ bad input


def test_what_cannot_be_is_one_sentence():
    found = captioner(backbone())
    with pytest.raises(UserError, match="has 50 tokens .* writes 40 at most"):
        found.padded(["z" * 49])
    found.padded(["z" * 39])
    with pytest.raises(UserError, match="^the answer 'xxx.{0,100} has 1048577 tokens"):
        found.trie_of(["x" * 2**20])
    with pytest.raises(UserError, match="train is 'everything'; expected one of 'projection', 'lora', 'language'"):
        found.train_only("everything")
    model, words = found.parts["language_model"], found.tokenizer
    words.eos_token = model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="the tokenizer of tiny has no end token"):
        Captioner(found.connector, model, words, found.look, [1, 2], [1], tag="tiny")
