"""Plans on paper: what is counted is the closed form, layers are alike, and a header shows what is computed."""

import gc
import importlib
import json
import math
from pathlib import Path

import pytest
import torch

HOME = Path(__file__).resolve().parent.parent
PRESET = HOME / "params" / "06_generative_classifier" / "gmm_imagenet_r.yaml"
PROMPT = "{image}Is it?"  # "Is", " it", "?"
DIM, INNER, HEADS, WORDS, WIDTH, QUERIES = 64, 96, 4, 50, 24, 8
BEFORE = 1 + QUERIES + 3  # a first token, the image, the words
NAMES = ["ant", "bee", "bear"]
ANSWERS = [["this", " is", " a", " ", name[:4], "."] for name in NAMES]


def script(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOME / "scripts")
        return importlib.import_module(name)


gmm_plan, presets = script("gmm_plan"), script("presets")


def config(depth=2):
    from transformers import Blip2Config, LlamaConfig

    text = LlamaConfig(
        vocab_size=WORDS, hidden_size=DIM, intermediate_size=INNER, num_hidden_layers=depth,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=False,
    )  # fmt: skip
    eye = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    former = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Blip2Config(
        text_config=text, vision_config={**eye, "image_size": 28, "patch_size": 14},
        qformer_config={**former, "encoder_hidden_size": 16}, num_query_tokens=QUERIES,
    )  # fmt: skip


def work(**changes):
    given = {
        "names": NAMES, "sentence": "this is a {}.", "prompt": PROMPT, "stop": "", "longest": 20, "batch_size": 2,
        "constrained": True, "augment": True, "seen": [2, 3], "tests": [5, 7], "taught": 100,
        "looks": {"anew": 112, "cached": 62}, "held": {"tests": 7, "cached": 30},
    }  # fmt: skip
    return gmm_plan.Work(**given | changes)


@pytest.fixture(scope="module")
def made():
    return gmm_plan.plan(config(), work())


WEIGHTS = 4 * DIM * DIM + 3 * DIM * INNER  # of a layer, as matrices


def layers(tokens, looked_at, depth=2):
    """2 x weights x tokens, and two products of attention: 2 x tokens x what is looked at x width, each."""
    return depth * (2 * WEIGHTS * tokens + 4 * tokens * looked_at * DIM)


def projected(images=1):
    return images * 2 * QUERIES * WIDTH * DIM


LENGTH = len(ANSWERS[0])  # of an answer with its end: "this", " is", " a", " ant", ".", end


def test_a_training_image_is_two_operations_a_weight_and_token(made):
    tokens = BEFORE + LENGTH - 1
    head = 2 * DIM * WORDS * LENGTH
    assert made.flops["forward"] == layers(tokens, tokens) + head + projected()
    # frozen weights: gradients of activations alone, but for the projection, whose input is given: of its matrix alone.
    # Attention's two products have two factors each, which both get gradients.
    attention = 2 * 4 * tokens * tokens * DIM
    assert made.flops["backward"] == layers(tokens, tokens) + attention + head + projected()


def test_an_answer_is_the_prompt_once_and_then_a_token_at_a_time(made):
    heads = LENGTH * 2 * DIM * WORDS
    steps = sum(layers(1, BEFORE + done) for done in range(1, LENGTH))
    assert made.flops["write"] == layers(BEFORE, BEFORE) + steps + heads + projected()


def test_names_are_scored_by_one_pass_over_the_trie_s_nodes(made):
    # "this is a" in common (3), then " ant", " bee", " bear" and a full stop behind each (6): the end is a leaf
    nodes = 9
    assert made.tokens["trie"] == nodes
    passes = layers(BEFORE, BEFORE) + layers(nodes, BEFORE + nodes) + projected()
    head = 2 * DIM * WORDS * (1 + nodes)
    assert made.flops["score"] == passes + head


def test_the_image_part_is_counted_on_its_own(made):
    """Two encoder blocks on 5 places and two query blocks, of which the first looks at the image."""
    patch, places = 2 * 4 * 3 * 14 * 14 * 16, 5
    block = 2 * places * (4 * 16 * 16 + 2 * 16 * 32) + 4 * places * places * 16
    own = 2 * (2 * QUERIES * (4 * WIDTH**2 + 2 * WIDTH * 32) + 4 * QUERIES**2 * WIDTH)
    cross = 2 * QUERIES * 2 * WIDTH**2 + 2 * places * 2 * 16 * WIDTH + 4 * QUERIES * places * WIDTH
    assert made.flops["look"] == patch + 2 * block + own + cross


def test_stages_add_up(made):
    f = made.flops
    two = gmm_plan.plan(config(), work(names=NAMES[:2], seen=[2], tests=[1])).flops["score"]
    assert made.stages["tune"] == 100 * (f["forward"] + f["backward"]) and made.stages["write"] == 12 * f["write"]
    assert made.stages["score"] == 5 * two + 7 * f["score"] and two < f["score"]
    speaking = made.stages["tune"] + made.stages["write"] + made.stages["score"]
    assert made.total == {"anew": speaking + 112 * f["look"], "cached": speaking + 62 * f["look"]}
    assert made.hours["anew"] * 3600 * gmm_plan.PEAK * gmm_plan.SHARE == pytest.approx(made.total["anew"])
    assert made.steps == 50 and made.tokens["all"] == 100 * (BEFORE + LENGTH - 1)
    free = gmm_plan.plan(config(), work(constrained=False))
    assert free.stages["score"] == free.flops["score"] == 0 and free.flops["write"] == f["write"]


def test_layers_are_alike_so_that_two_depths_tell_of_every_other():
    image = torch.zeros(1, QUERIES, WIDTH, device="meta")
    whole, told = gmm_plan.measured(config(5), image, work()), gmm_plan.plan(config(5), work())
    for kind in ("forward", "backward", "write", "score"):
        assert told.flops[kind] == whole[kind]
    for name in ("activations", "recomputed", "keys and values"):
        assert told.bytes[name] == whole[name]
    assert told.parameters == {name: whole[name] for name in ("image", "projection", "language")}


def test_parameters_and_bytes(made):
    assert made.parameters["projection"] == WIDTH * DIM + DIM
    assert made.parameters["language"] == 2 * (WEIGHTS + 2 * DIM) + DIM + 2 * WORDS * DIM  # norms; words in and out
    assert made.bytes["keys and values"] == 2 * 2 * 2 * DIM * (BEFORE + LENGTH - 1) * 256
    assert made.bytes["tests"] == 4 * 7 * QUERIES * WIDTH and made.bytes["cached"] == 4 * 30 * QUERIES * WIDTH
    assert made.bytes["optimiser"] == 3 * 4 * made.parameters["projection"]


def test_recomputing_keeps_little_more_than_each_layer_s_input(made):
    inputs = 2 * (BEFORE + LENGTH - 1) * DIM * 2  # a batch of 2, bfloat16
    few = gmm_plan.plan(config(1), work()).bytes["recomputed"]
    assert made.bytes["recomputed"] - few == inputs
    assert made.bytes["recomputed"] < made.bytes["activations"] / 2


def test_kept_is_what_stays_alive():
    """Of y = sum(relu(x w)): x for w's gradient, the product's sign through its output, and no weight."""
    layer = torch.nn.Linear(4, 6, bias=False)
    x = torch.ones(5, 4)
    assert gmm_plan.kept(lambda: layer(x).relu().sum(), layer) == 4 * (5 * 4 + 5 * 6)
    gc.collect()


def test_pieces_stand_in_for_a_tokenizer():
    pieces = gmm_plan.Pieces()
    assert len(pieces("this is a photo of a goldfish.###")["input_ids"]) == 10  # " gold" and "fish", then ".###"
    one, other = (pieces(text)["input_ids"] for text in ("great white shark", "great grey owl"))
    assert one[0] == other[0] and len(set(one) & set(other)) == 1


def test_what_is_not_known_has_no_plan():
    assert gmm_plan.config_of("vlm:somebody/something") is None


def test_the_model_of_the_preset_has_the_released_projection_and_the_header_shows_what_is_computed():
    values = presets.parameters_of(PRESET)
    planned = presets.planned(values)
    assert "\n".join(planned) + "\n# ---\n" in PRESET.read_text(), "run scripts/presets.py"
    text = " ".join(line.removeprefix("#").strip() for line in planned)
    assert "3,149,824 projection" in text and "Planned, not run" in text and "32 of the image" in text


def test_the_released_run_s_images():
    """Ten tasks of 2,400 images on equal classes, 2,000 exemplars rounded up to as many a class, as iCaRL does."""
    made = presets.work_of(presets.parameters_of(PRESET))
    kept = [20 * t * math.ceil(2000 / (20 * t)) for t in range(1, 10)]
    assert made.taught == 5 * (24_000 + sum(kept))
    assert made.looks["anew"] == made.taught + 24_000 + 6_000  # to choose exemplars; each test image once
    assert made.looks["cached"] == 24_000 + sum(kept) + 6_000
    assert made.tests == [600 * t for t in range(1, 11)] and made.seen == [20 * t for t in range(1, 11)]
    assert sorted(made.names) == sorted(presets.benchmarks.class_names("imagenet_r"))


@pytest.mark.slow  # the numbers in it are those of the tests above
def test_a_table_and_one_last_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(gmm_plan, "config_of", lambda name: config())
    monkeypatch.setattr("sys.argv", ["gmm_plan.py", str(PRESET)])
    gmm_plan.main()
    *table, last = capsys.readouterr().out.splitlines()
    plans = json.loads(last)["plans"]
    assert [one["model"] for one in plans] == ["vlm:Salesforce/blip2-opt-6.7b", gmm_plan.PAPER]
    assert "gmm_imagenet_r.yaml" in table[0] and any("Hours on one H200" in line for line in table)
    assert all(one["hours"]["cached"] < one["hours"]["anew"] for one in plans)
