"""Text encoders in the formats that they are published in, of random weights, beside slow sums of their own tokens."""

import json
import math
import shutil

import numpy as np
import pytest
import tiny_pipelines
from test_audit import NAMES, write_encoder

from cilkit.answers import NameMatcher
from cilkit.captioning.text_encoders import EMBEDDED, Encoder
from cilkit.data import embedded
from cilkit.errors import UserError
from cilkit.realms.text_embedding import TextEncoder

TEXTS = [NAMES[0], NAMES[2], NAMES[4], "gadwall", "tern tern tern", ""]
LONG = " ".join(["great tern"] * 2000)  # 22,000 letters; an answer is read to its 1,000th
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """kind -> folder of an encoder in the format of transformers, written once."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(kind):
        if not (root / kind).exists():
            if kind == "pipeline":
                tiny_pipelines.clip_tokenizer().save_pretrained(root / kind / "tokenizer")
                tiny_pipelines.clip_text().save_pretrained(root / kind / "text_encoder")
            elif kind == "clip of 77":
                tiny_pipelines.clip_tokenizer().save_pretrained(root / kind)
                tiny_pipelines.clip_text(projected=True).save_pretrained(root / kind)
            else:
                write_encoder(root / kind, kind)
        return root / kind

    return folder


def flags(*on):
    """A Pooling's config.json as sentence-transformers wrote it before its key pooling_mode."""
    return {"word_embedding_dimension": 16} | {f"pooling_mode_{key}": key in on for key in FLAGS}


def sentence_encoder(source, folder, pooling=None, dense=(), kinds=("Transformer", "Pooling", "Dense", "Normalize")):
    """Add what sentence-transformers writes beside a transformer. dense: (out, bias, activation) of each layer."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(source, folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"sentence_transformers.models.{kinds[0]}"}]

    def add(kind, settings):
        place = len(modules)
        path = folder / f"{place}_{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(settings))
        kind = f"sentence_transformers.models.{kind}"
        modules.append({"idx": place, "name": str(place), "path": path.name, "type": kind})
        return path

    width, random = 16, torch.Generator().manual_seed(1)
    if pooling is not None:
        add(kinds[1], pooling)
        given = pooling.get("pooling_mode", [key for key in FLAGS if pooling.get(f"pooling_mode_{key}")])
        width *= 1 if isinstance(given, str) else max(1, len(given))
    for out, bias, activation in dense:
        sizes = {"in_features": width, "out_features": out, "bias": bias}
        path = add(kinds[2], sizes | {"activation_function": f"torch.nn.modules.{activation}"})
        weights = {"linear.weight": torch.randn(out, width, generator=random)}
        weights |= {"linear.bias": torch.randn(out, generator=random)} if bias else {}
        save_file(weights, path / "model.safetensors")
        width = out
    add(kinds[3], {})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def tokens_of(folder, text):
    """Last hidden states of one text's tokens, without padding: a list of lists."""
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return transformers.AutoModel.from_pretrained(folder).eval()(tokens).last_hidden_state[0].double().tolist()


def unit(vector):
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


BY_HAND = {
    "cls": lambda tokens: tokens[0],
    "lasttoken": lambda tokens: tokens[-1],
    "max": lambda tokens: [max(token[i] for token in tokens) for i in range(16)],
    "mean": lambda tokens: [sum(token[i] for token in tokens) / len(tokens) for i in range(16)],
}


# ---------------------------------------------------------------- sentence encoders


@pytest.mark.parametrize(
    "pooling, modes",
    (
        (flags("mean_tokens"), ["mean"]),
        (flags("cls_token"), ["cls"]),
        (flags("max_tokens"), ["max"]),
        (flags("lasttoken"), ["lasttoken"]),
        (flags("mean_tokens", "max_tokens", "cls_token"), ["cls", "max", "mean"]),  # in that order, whatever the file's
        (flags(), ["mean"]),
        ({"embedding_dimension": 16, "pooling_mode": "max", "include_prompt": True}, ["max"]),
        ({"embedding_dimension": 16, "pooling_mode": ["mean", "cls"], "include_prompt": True}, ["mean", "cls"]),
        (None, ["mean"]),
    ),
)
def test_tokens_are_pooled_as_the_folder_says(plain, tmp_path, pooling, modes):
    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", pooling)
    expected = [unit([value for mode in modes for value in BY_HAND[mode](tokens_of(folder, text))]) for text in TEXTS]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))  # as for generating
    alone, padded = Encoder(str(folder))(TEXTS), TextEncoder(str(folder)).embed(TEXTS)
    assert alone.dtype == np.float32 and alone.shape == (6, 16 * len(modes))
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    np.testing.assert_allclose(padded, expected, atol=1e-6)


@pytest.mark.parametrize(
    "dense", ([(12, True, "activation.Tanh")], [(24, False, "linear.Identity"), (5, True, "activation.Tanh")])
)
def test_dense_layers_follow_the_pooling(plain, tmp_path, dense):
    from safetensors.numpy import load_file

    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("mean_tokens", "cls_token"), dense)
    found = Encoder(str(folder))(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        tokens = tokens_of(folder, text)
        vector = BY_HAND["cls"](tokens) + BY_HAND["mean"](tokens)
        for place, (out, bias, activation) in enumerate(dense, 2):
            weights = load_file(folder / f"{place}_Dense/model.safetensors")
            rows, shifts = weights["linear.weight"].tolist(), weights.get("linear.bias", np.zeros(out)).tolist()
            assert bias == ("linear.bias" in weights)
            vector = [sum(w * x for w, x in zip(r, vector, strict=True)) + s for r, s in zip(rows, shifts, strict=True)]
            vector = [math.tanh(value) for value in vector] if activation.endswith("Tanh") else vector
        np.testing.assert_allclose(row, unit(vector), atol=1e-5)


def test_loading_a_dense_layer_draws_no_random_numbers(plain, tmp_path):
    import torch

    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("cls_token"), [(12, True, "activation.Tanh")])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Encoder(str(folder))
    assert torch.equal(torch.rand(3), expected)


def test_words_are_cut_where_the_tokenizer_says_if_that_is_sooner(plain, tmp_path):
    """RoBERTa and MPNet read two tokens fewer than their positions: their tokenizers know it."""
    import transformers

    shutil.copytree(plain("bert"), tmp_path / "encoder")
    transformers.AutoTokenizer.from_pretrained(plain("bert"), model_max_length=6).save_pretrained(tmp_path / "encoder")
    cut, whole = Encoder(str(tmp_path / "encoder")), Encoder(str(plain("bert")))
    assert np.array_equal(cut([LONG]), whole(["great tern great tern"]))
    assert not np.array_equal(cut([LONG]), whole([LONG]))


# ---------------------------------------------------------------- every encoder


@pytest.fixture(scope="module", params=["embedded", "pipeline", "clip", "clip of 77", "clip_text_model", "bert", "t5"])
def encoder(request, plain):
    return Encoder(EMBEDDED if request.param == "embedded" else str(plain(request.param)))


def test_a_text_s_bits_are_its_own_whatever_it_is_encoded_with(encoder):
    whole = encoder(TEXTS)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for rows in ([5, 4, 3, 2, 1, 0], [2], [0, 0, 3, 0], [1, 5] * 9, [4, 3]):
        assert np.array_equal(encoder([TEXTS[row] for row in rows]), whole[rows])
    assert np.array_equal(Encoder(encoder.spec)(TEXTS[:2]), whole[:2])
    assert len(np.unique(whole, axis=0)) == len(TEXTS)


def test_a_very_long_text_is_read_at_its_beginning(encoder):
    if "t5" in encoder.spec:
        return  # reads any length, in time that grows with its square
    found = encoder([LONG])
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-6)
    assert np.array_equal(found, encoder([LONG[:1000]]))


def test_a_clip_s_text_is_cut_by_tokens_and_projected(plain):
    import torch
    import transformers

    folder = plain("clip of 77")
    text = "a photo of a table lamp " * 30
    assert len(text) > 5 * 77
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) > 100
    model = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
    with torch.no_grad():
        cut = torch.tensor([tokens[:76] + [tokenizer.eos_token_id]])
        state = model.text_model(cut).last_hidden_state[0, 76].double()
        expected = state @ model.text_projection.weight.T.double()
    np.testing.assert_allclose(Encoder(str(folder))([text])[0], unit(expected.tolist()), atol=1e-6)
    one, other = ("digit seven " * 8 + end for end in ("one", "two"))  # alike for 96 characters, and fewer tokens
    assert not np.array_equal(*Encoder(str(folder))([one, other]))


def test_a_pipeline_s_encoder_is_its_end_token_s_last_state(plain):
    import torch
    import transformers

    folder = plain("pipeline")
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")("digit seven")["input_ids"]
    with torch.no_grad():
        model = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        state = model(torch.tensor([tokens])).last_hidden_state[0, -1]
    np.testing.assert_allclose(Encoder(str(folder))(["digit seven"])[0], unit(state.tolist()), atol=1e-6)


# ---------------------------------------------------------------- the embedded one


def test_the_embedded_encoder_tells_the_digits_apart():
    encode = Encoder(EMBEDDED)
    vectors = encode(embedded.NAMES)
    cosines = vectors @ vectors.T
    assert (cosines.argmax(1) == range(10)).all()
    assert (cosines - 2 * np.eye(10)).max() < 0.86  # "digit one" and "digit five", the two that are most alike
    matcher = NameMatcher(embedded.NAMES, encode)
    labels, scores = matcher.predict(["digit seven", "Digit_Seven.", "seven"])
    assert labels.tolist() == [7, 7, 7]
    assert (np.delete(scores[0], 7) < 0.86).all()


def test_names_that_the_embedded_encoder_never_learnt_are_still_told_apart():
    names = ["german shepherd", "german shepherd dog", "table lamp", "lamp", "St. Bernard", "straße", "犬", "猫"]
    encode = Encoder(EMBEDDED)
    vectors = encode(names)
    assert len(np.unique(vectors, axis=0)) == len(names)
    assert NameMatcher(names, encode).predict(names)[0].tolist() == list(range(len(names)))
    same = ["x " * 60 + name for name in names]  # longer than it reads: one embedding
    assert len(np.unique(encode(same), axis=0)) == 1
    assert NameMatcher(same, encode).predict(same)[0].tolist() == list(range(len(names)))


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("on", ("weightedmean_tokens", "mean_sqrt_len_tokens"))
def test_an_unknown_pooling_is_named(plain, tmp_path, on):
    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("mean_tokens", on))
    with pytest.raises(UserError, match=rf"pools by {on.removesuffix('_tokens')}; expected cls, max, mean, lasttoken"):
        Encoder(str(folder))


BROKEN = {  # a file, what is written over it (None: it is taken away), and what is said
    "json": ("modules.json", "[{", "no text encoder that can be loaded"),
    "no pooling": ("1_Pooling/config.json", None, "no text encoder that can be loaded .*1_Pooling/config.json"),
    "no weights": ("2_Dense/model.safetensors", None, "no text encoder .*2_Dense/model.safetensors"),
    "cut weights": ("2_Dense/model.safetensors", "xxxx", "no text encoder that can be loaded"),
    "cut network": ("model.safetensors", "xxxx", "no text encoder that can be loaded"),
    "no tokenizer": ("tokenizer.json", None, "no text encoder that can be loaded"),
    "sizes": ("1_Pooling/config.json", json.dumps(flags("mean_tokens", "cls_token")), "cannot be multiplied"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_folder_is_one_sentence(plain, tmp_path, name):
    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("mean_tokens"), [(8, True, "activation.Tanh")])
    Encoder(str(folder))
    file, text, said = BROKEN[name]
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(UserError, match=said + ".*'embedded', which comes with cilkit") as error:
        Encoder(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more, said",
    (
        ({"kinds": ("Transformer", "Pooling", "LSTM", "Normalize")}, "has a LSTM"),
        ({"kinds": ("Transformer", "Pooling", "Dense", "Dropout")}, "has a Dropout"),
        ({"dense": [(8, True, "activation.ReLU")]}, r"has a Dense \(ReLU\) as module 2 .*Identity or Tanh"),
    ),
)
def test_a_module_that_is_not_read_here_is_named(plain, tmp_path, more, said):
    more = {"dense": [(8, True, "activation.Tanh")]} | more
    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("mean_tokens"), **more)
    with pytest.raises(UserError, match=f"{said}.*give another text encoder"):
        Encoder(str(folder))


def test_a_residual_dense_layer_is_refused(plain, tmp_path):
    folder = sentence_encoder(plain("bert"), tmp_path / "encoder", flags("cls_token"), [(16, True, "activation.Tanh")])
    settings = json.loads((folder / "2_Dense/config.json").read_text())
    (folder / "2_Dense/config.json").write_text(json.dumps(settings | {"use_residual": True}))
    with pytest.raises(UserError, match=r"has a Dense \(Tanh\) as module 2 .*without residual"):
        Encoder(str(folder))


def test_an_unknown_name_is_one_sentence(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "none"), "no name of a model"):
        with pytest.raises(UserError, match="is no text encoder that can be loaded .*'embedded', which comes") as error:
            Encoder(name)
        assert "\n" not in str(error.value) and "n-grams" not in str(error.value)


def test_a_pipeline_whose_encoder_is_no_clip_is_refused(plain, tmp_path):
    """Its weights would be left out, and random ones taken."""
    shutil.copytree(plain("t5"), tmp_path / "text_encoder")
    shutil.copytree(plain("t5"), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="holds no CLIP text encoder .*is a t5.*'embedded'"):
        Encoder(str(tmp_path))
