"""Vision-language models taken apart: what the parts say is what the whole model says, in four families."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_llm
import tiny_vlms
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

import cilkit
from cilkit import backbones, learners
from cilkit.captioning import vlm
from cilkit.captioning.trie import Trie
from cilkit.errors import UserError
from cilkit.road.weights import Weights

QUESTION = "What is this photo of?"
ANSWERS = ["this is a photo of a ray.", "a cat.", "this is a photo of a cat."]
SIDES = {"qwen2vl": {"image_size": 32}}  # of the family that takes any size


def settings(kind):
    return {"prompt": tiny_vlms.PROMPT.get(kind, "")} | SIDES.get(kind, {})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("vlms")


@pytest.fixture(scope="module")
def folder(home):
    """kind -> the folder of a tiny model, written when first asked for."""

    def place(kind):
        return home / kind if (home / kind).is_dir() else tiny_vlms.write(kind, home / kind)

    return place


class Whole:
    """A model of transformers as anyone uses it: PIL images and a text, through processor and `forward`."""

    def __init__(self, kind, folder):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder)
        self.processor = AutoProcessor.from_pretrained(folder)
        self.more = {"smolvlm": {"do_image_splitting": False, "size": {"longest_edge": 32}}}.get(kind, {})
        if kind == "blip2":
            self.text = tiny_vlms.PROMPT[kind].removeprefix("{image}")
            return
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        self.text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    def inputs(self, pixels):
        """pixels: uint8 (n, h, w, 3)."""
        from PIL import Image

        shown = [[Image.fromarray(one)] for one in pixels]
        return self.processor(text=[self.text] * len(shown), images=shown, return_tensors="pt", **self.more)

    def nll(self, pixels, answer):
        """Of one image: prompt and answer in a row, labels on the answer and its end alone."""
        inputs, words = self.inputs(pixels[None]), self.processor.tokenizer
        ids = torch.tensor([words(answer, add_special_tokens=False)["input_ids"] + [words.eos_token_id]])
        ignored = torch.full_like(inputs["input_ids"], -100)
        grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
        for name, value in grown.items():
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], value], 1)
        return float(self.model(**inputs, labels=torch.cat([ignored, ids], 1)).loss) * ids.shape[1]


@pytest.fixture(scope="module", params=tiny_vlms.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tower(kind, folder):
    return vlm.load(str(folder(kind)), **settings(kind))


@pytest.fixture(scope="module")
def whole(kind, folder):
    return Whole(kind, folder(kind))


def photos(tower, count=3):
    """uint8 (count, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, tower.input.size, tower.input.size, 3), np.uint8)


def seen(tower, pixels, kind="probe"):
    """Tokens of uint8 pixels, which come as a learner's recipe prepares them."""
    from cilkit.data import transforms

    with torch.no_grad():
        return tower.tokens(transforms.recipe("none", tower.input).test(pixels), kind)


# ------------------------------------------------------------ the parts against the whole


@torch.no_grad()
def test_logits_are_the_whole_models_at_every_place_of_the_prompt(tower, whole):
    pixels, writer = photos(tower), tower.captioner
    theirs = whole.model(**whole.inputs(pixels)).logits  # (3, length, words)
    found = writer._decode(writer._prefix(seen(tower, pixels)), writer.positions)
    torch.testing.assert_close(writer.head(found.last_hidden_state), theirs, rtol=0, atol=1e-4)
    assert theirs[:, -1].std(0).max() > 0.05  # the image is seen: else nothing would have been compared


def test_features_are_the_mean_of_what_the_connector_reads(tower, whole, kind):
    pixels, read = photos(tower), []
    names = {"llava": "model.multi_modal_projector", "blip2": "language_projection", "smolvlm": "model.connector"}
    part = whole.model.get_submodule(names.get(kind, "model.visual.merger"))
    handle = part.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        whole.model(**whole.inputs(pixels))
        handle.remove()
        tokens = seen(tower, pixels)
        shown = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(tower.mean)[:, None, None]) / (
            torch.tensor(tower.std)[:, None, None]
        )
        features = tower(shown, "probe")
    torch.testing.assert_close(tokens, read[0].reshape(3, -1, tower.dim), rtol=0, atol=2e-5)
    torch.testing.assert_close(features, tokens.mean(1))
    assert features.shape == (3, tower.dim) and features.dtype == torch.float32


@torch.no_grad()
def test_nll_is_the_whole_models_loss_on_the_answer(tower, whole):
    pixels, writer = photos(tower), tower.captioner
    ours = writer.nll(seen(tower, pixels), writer.padded(ANSWERS))  # an answer of its own for each image
    theirs = [whole.nll(one, answer) for one, answer in zip(pixels, ANSWERS, strict=True)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)


@torch.no_grad()
def test_answers_are_what_the_whole_model_generates(tower, whole):
    pixels = photos(tower, 4)
    written = tower.captioner.write(seen(tower, pixels))
    for one, text in zip(pixels, written, strict=True):
        inputs = whole.inputs(one[None])
        ids = whole.model.generate(**inputs, do_sample=False, max_new_tokens=40)[0]
        start = inputs["input_ids"].shape[1]
        ids = ids[start:] if ids[:start].equal(inputs["input_ids"][0]) else ids
        assert text == whole.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert len(set(written)) > 1


@torch.no_grad()
def test_scores_are_minus_nll(tower):
    writer, tokens = tower.captioner, seen(tower, photos(tower))
    scores = writer.score(tokens, writer.trie_of(ANSWERS))  # (3, answers)
    for column, answer in enumerate(ANSWERS):
        one_by_one = writer.nll(tokens, writer.padded([answer]).expand(3, -1))
        torch.testing.assert_close(scores[:, column], -one_by_one, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------ what learns


def test_the_vision_part_alone_is_the_tower(tower, whole):
    """Its state_dict and parameters hold nothing of connector and language model, and nothing else is missing."""
    rest = {id(value) for value in tower.captioner.parameters()}
    assert not rest & {id(value) for value in tower.parameters()}
    together = sum(p.numel() for part in (tower, tower.captioner) for p in part.parameters())
    assert together == sum(p.numel() for p in whole.model.parameters())
    vision = {name: value for name, value in whole.model.state_dict().items() if f"model.{name}" in tower.state_dict()}
    assert vision.keys() == {name.removeprefix("model.") for name in tower.state_dict()}
    assert not any(part in name for name in vision for part in ("language_model", "text_model", "lm_head", "proj_in"))
    tower.learning("auto")
    assert not any(module.training for module in (*tower.modules(), *tower.captioner.modules()))


def test_the_connector_learns_and_nothing_else(kind, folder):
    tower = vlm.load(str(folder(kind)), **settings(kind))
    tower.requires_grad_(False)
    writer, tokens = tower.captioner, seen(tower, photos(tower))
    writer.train_only("projection")
    before = {name: value.clone() for name, value in writer.named_parameters()}
    optimiser = torch.optim.SGD(writer.learning(), lr=0.01)
    first = writer.nll(tokens, writer.padded(ANSWERS)).sum()
    first.backward()
    assert all(value.grad is None for name, value in writer.named_parameters() if not name.startswith("connector."))
    assert all(float(value.grad.abs().sum()) > 0 for value in writer.connector.parameters())
    optimiser.step()
    assert writer.nll(tokens, writer.padded(ANSWERS)).sum() < first
    changed = {name for name, value in writer.named_parameters() if not value.equal(before[name])}
    assert changed == {f"connector.{name}" for name, _ in writer.connector.named_parameters()}


def test_loras_begin_without_effect_and_learn(kind, folder):
    tower = vlm.load(str(folder(kind)), **settings(kind))
    writer, tokens = tower.captioner, seen(tower, photos(tower))
    with torch.no_grad():
        plain = writer.nll(tokens, writer.padded(ANSWERS))
    writer.train_only("lora", rank=2)
    found = writer.nll(tokens, writer.padded(ANSWERS))
    torch.testing.assert_close(found.detach(), plain, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    names = {name for name, value in writer.learnt() if not name.startswith("connector.")}
    assert names and all("lora_" in name for name in names)
    assert any(value.grad.abs().sum() > 0 for name, value in writer.learnt() if "lora_B" in name)
    assert tower.captioner.write(tokens)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_frozen_may_be_in_bfloat16(kind, folder, tower, precision):
    """The connector, which learns, stays in float32; the numbers are the float32 model's but for rounding."""
    half = vlm.load(str(folder(kind)), dtype="bfloat16", **settings(kind))
    half.precision = half.captioner.precision = precision
    pixels, writer = photos(tower), half.captioner
    tokens = seen(half, pixels)
    assert tokens.dtype == torch.float32
    assert float(cosine_similarity(tokens.flatten(1), seen(tower, pixels).flatten(1)).min()) > 0.99
    for part in ("projection", "lora"):
        writer.train_only(part, rank=2)
        assert {value.dtype for value in writer.learning()} == {torch.float32}
        assert {value.dtype for name, value in writer.decoder.named_parameters() if "lora_" not in name} == {
            torch.bfloat16
        }
        loss = writer.nll(tokens, writer.padded(ANSWERS))
        with torch.no_grad():
            exact = tower.captioner.nll(seen(tower, pixels), tower.captioner.padded(ANSWERS))
        torch.testing.assert_close(loss.detach(), exact, rtol=0.1, atol=1)
        loss.sum().backward()
        assert all(torch.isfinite(value.grad).all() for value in writer.learning())
    assert len(writer.write(tokens)) == 3
    assert torch.isfinite(writer.score(tokens, writer.trie_of(ANSWERS))).all()


# ------------------------------------------------------------ runs


def test_a_learner_that_writes_and_one_that_does_not_share_features(kind, folder, stream):
    tower = vlm.load(str(folder(kind)), **settings(kind))
    weights = {name: value.clone() for name, value in tower.state_dict().items()}
    hyper = {"epochs": 1, "batch_size": 8, "lr": 0.01, "per_class": 1}
    gmm = learners.create("gmm", tower, captioner=tower.captioner, text_encoder=tiny.letters, **hyper)
    tasks = list(stream)[:2]
    tiny.learn(gmm, tasks)
    said = gmm.predict(stream.test_after(tasks[1]))
    images = {"statistics": sum(len(task.train) for task in tasks) + tasks[0].seen, "test": len(said)}
    assert dict(tower.forwarded) == images  # one image, one count
    with pytest.raises(UserError, match="recipe 'slca_cifar' normalises by"):
        learners.create("gmm", tower, captioner=tower.captioner, text_encoder=tiny.letters, recipe="slca_cifar")
    assert len(said.texts) == len(said) and said.heads["constrained"].shape == (len(said), 4)
    tower.forwarded.clear()
    plain = tiny.learn(learners.create("simplecil", tower), tasks).predict(stream.test_after(tasks[1]))
    np.testing.assert_allclose(plain.features, said.features, rtol=1e-5, atol=1e-5)
    assert tower.forwarded["test"] == len(plain)
    assert all(value.equal(weights[name]) for name, value in tower.state_dict().items())


def test_a_run_names_a_model_and_leaves_it_where_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    stream = cilkit.stream("digits")[:1]
    common = {"backbone": f"vlm:{folder('llava')}", "threads": 1, "device": "cpu", "keep": ["backbone"]}
    common["model_args"] = {"longest": 36}
    for learner, hyper in (("gmm", {"epochs": 1, "constrained": False}), ("simplecil", {})):
        made = cilkit.run(learner, stream, **common, **hyper)
        card = json.loads((made.artifact.path / "run.json").read_text())
        assert card["keep"]["backbone"] is False and not (made.artifact.path / "backbone").exists()
        assert card["backbone"]["tag"] == "llava"


def test_weights_settings_and_chat_template_are_a_models_identity(folder, tmp_path):
    copied = shutil.copytree(folder("llava"), tmp_path / "copy")
    assert Weights(f"vlm:{copied}").identity == Weights(f"vlm:{folder('llava')}").identity
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert Weights(f"vlm:{copied}").identity != Weights(f"vlm:{folder('llava')}").identity


# ------------------------------------------------------------ prompts


def test_a_prompt_of_ones_own_holds_the_image_where_it_says(folder):
    made = vlm.load(str(folder("llava")), prompt="Here {image} is what?").captioner
    words = made.tokenizer
    assert words.decode(made.prompt[:5]) == "Here " and words.decode(made.prompt[9:]) == " is what?"
    assert made.slots.tolist() == [5, 6, 7, 8]


def test_a_connector_can_be_named(folder):
    named = vlm.load(str(folder("llava")), connector="model.multi_modal_projector", stop="###")
    found = vlm.load(str(folder("llava")))
    pixels = photos(found)
    torch.testing.assert_close(seen(named, pixels), seen(found, pixels))
    assert named.captioner.stop == "###"


# ------------------------------------------------------------ bad input


def spoilt(folder, tmp_path, kind, file="config.json", **changes):
    """A copy of a tiny model with other values in one of its files; a dictionary is laid over the one that is there."""
    copied = shutil.copytree(folder(kind), tmp_path / kind)
    card = json.loads((copied / file).read_text())
    for name, value in changes.items():
        card[name] = {**card[name], **value} if isinstance(value, dict) else value
    (copied / file).write_text(json.dumps(card))
    return str(copied)


def test_arguments_are_checked(folder):
    place = str(folder("llava"))
    with pytest.raises(
        UserError, match=r"no model_args 'promt' \(did you mean 'prompt'\?\); it takes prompt, question"
    ):
        vlm.load(place, promt="{image}")
    with pytest.raises(UserError, match="dtype is 'float16'; expected one of 'float32', 'bfloat16'"):
        vlm.load(place, dtype="float16")
    with pytest.raises(UserError, match=r"has 2 places \{image\}; expected one"):
        vlm.load(place, prompt="{image}{image}")
    with pytest.raises(UserError, match=r"has no part 'model.projector' \(did you mean"):
        vlm.load(place, connector="model.projector")
    with pytest.raises(UserError, match="no model_args 'size'"):
        Weights(f"vlm:{place}", model_args={"size": 3}).load()


def test_a_folder_that_holds_no_such_model(folder, tmp_path):
    tiny_llm.write(tmp_path / "words")
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(folder("llava"), tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    lacking = shutil.copytree(folder("llava"), tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    weights.pop(next(name for name in weights if "projector" in name))
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    for name in ("words", "empty", "damaged", "lacking"):
        with pytest.raises(
            UserError, match=f"{name}' cannot be loaded .*give a folder with an image-text-to-text model"
        ):
            vlm.load(str(tmp_path / name))


def test_a_model_without_chat_template_asks_for_a_prompt(folder):
    with pytest.raises(
        UserError, match=r"no chat template; set prompt, with \{image\} where the image stands, such as"
    ):
        vlm.load(str(folder("blip2")))
    with pytest.raises(UserError, match="reads its image before all words"):
        vlm.load(str(folder("blip2")), prompt="What is {image}?")


def test_a_processor_that_makes_room_for_another_number_of_tokens(folder, tmp_path):
    spoilt_llava = spoilt(folder, tmp_path, "llava", "processor_config.json", patch_size=7)
    with pytest.raises(UserError, match="makes room for 16 image tokens, and the model's connector gives 4"):
        vlm.load(spoilt_llava)
    spoilt_blip2 = spoilt(folder, tmp_path, "blip2", "processor_config.json", num_query_tokens=5)
    with pytest.raises(UserError, match="makes room for 5 image tokens, and the model's connector gives 4"):
        vlm.load(spoilt_blip2, **settings("blip2"))


def test_an_image_token_that_is_not_the_tokenizers(folder, tmp_path):
    with pytest.raises(UserError, match="'<image>' is 259 to the tokenizer .* and 12 to the model"):
        vlm.load(spoilt(folder, tmp_path, "llava", image_token_index=12))
    place = spoilt(folder, tmp_path, "smolvlm")
    (tmp_path / "smolvlm" / "processor_config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        vlm.load(place)


def test_a_tokenizer_larger_than_the_model(folder, tmp_path):
    from transformers import AutoProcessor

    copied = shutil.copytree(folder("llava"), tmp_path / "llava")
    processor = AutoProcessor.from_pretrained(copied)
    processor.tokenizer.add_tokens(["more", "and more"])
    processor.save_pretrained(copied)
    with pytest.raises(UserError, match="has 262 tokens and the model vectors for 260"):
        vlm.load(str(copied))


def test_an_encoder_decoder_is_refused(folder, tmp_path):
    from transformers import AutoProcessor, Blip2ForConditionalGeneration, T5Config

    words = AutoProcessor.from_pretrained(folder("blip2"))
    config = Blip2ForConditionalGeneration.config_class.from_pretrained(folder("blip2"))
    config.text_config = T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.use_decoder_only_language_model = False
    Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is an encoder-decoder \(t5\), .*take a model with a causal one"):
        vlm.load(str(tmp_path), **settings("blip2"))


def test_a_family_whose_connector_is_not_known_or_cannot_be_taken_out(folder, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be taken apart .*\(get_image_features passes the connector by\)"):
        vlm.load(str(folder("llava")), connector="lm_head")
    monkeypatch.setattr(vlm, "CONNECTORS", ())
    with pytest.raises(UserError, match=r"no connector of llava \(llava\) is known; set connector"):
        vlm.load(str(folder("llava")))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_orders_its_image_anew_is_found_out(folder, monkeypatch, dtype):
    """As Qwen2.5-VL does after its connector, with images of more than one window."""
    from transformers import LlavaModel

    plain = LlavaModel.get_image_features

    def turned(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)
        found.pooler_output = [one.flip(0) for one in found.pooler_output]
        return found

    monkeypatch.setattr(LlavaModel, "get_image_features", turned)
    with pytest.raises(UserError, match=r"cannot be taken apart .*\(the prompt's vectors are .* off\); LLaVA, BLIP-2"):
        vlm.load(str(folder("llava")), dtype=dtype)


def test_a_model_that_scales_its_logits_is_found_out(folder, monkeypatch):
    from transformers import LlavaForConditionalGeneration

    plain = LlavaForConditionalGeneration.forward

    def scaled(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)
        found.logits = 1.01 * found.logits
        return found

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", scaled)
    with pytest.raises(UserError, match=r"cannot be taken apart .*\(the next word's logits are .* off\)"):
        vlm.load(str(folder("llava")))


def test_a_language_model_that_does_not_see_its_whole_prompt_is_found_out(folder, tmp_path):
    """Names scored together read the whole prompt, so one that looks 8 words back only would be scored wrongly."""
    narrow = spoilt(folder, tmp_path, "llava", text_config={"model_type": "mistral", "sliding_window": 8})
    with pytest.raises(UserError, match="cannot be taken apart into image encoder, connector and language model"):
        vlm.load(narrow)
    wide = spoilt(folder, tmp_path / "wide", "llava", text_config={"model_type": "mistral", "sliding_window": 500})
    assert type(vlm.load(wide).captioner.decoder).__name__ == "MistralModel"


def test_answers_scored_together_are_compared_with_each_alone(folder, monkeypatch):
    """As an attention would give them that lets an answer look at its neighbours."""
    plain = Trie.of

    def open_trie(rows, device="cpu"):
        made = plain(rows, device)
        return replace(made, ancestors=torch.ones_like(made.ancestors))

    monkeypatch.setattr(Trie, "of", open_trie)
    with pytest.raises(UserError, match=r"cannot be taken apart .*\(answers scored together are .* off\)"):
        vlm.load(str(folder("llava")))


def test_what_asks_for_a_model_of_timms_is_refused(folder, tmp_path):
    tower = vlm.load(str(folder("llava")))
    with pytest.raises(UserError, match="llava is no model of timm's and is not saved as one"):
        backbones.save(tower, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="llava is taken apart before its connector alone"):
        tiny.captioner(tower)  # assembled of a backbone's maps
    with pytest.raises(UserError, match="gives no maps by stage"):
        tower.stages(torch.zeros(1, 3, 28, 28), "probe")
    with pytest.raises(UserError, match="attaches to transformer blocks"):
        learners.create("l2p", tower)


def test_images_of_another_size_are_refused_where_they_give_other_tokens(folder):
    tower = vlm.load(str(folder("qwen2vl")), image_size=32)
    with pytest.raises(UserError, match="images of 48 x 48 pixels give tokens .* loaded for 16 an image"):
        tower.tokens(torch.zeros(1, 3, 48, 48), "probe")
    with pytest.raises(UserError, match="no kind of forward pass"):
        tower.tokens(torch.zeros(1, 3, 32, 32), "look")
