"""The library's public names: three calls from a checkpoint and pairs to a ranked table."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from conftest import LEARNING_RATE, build_lora_model, draw_examples, draw_rows, warm_up
from peft import PeftModel

import rubric_influence.influence as library
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.influence import PairScorer, Target, capture_moments, load_target, rank_pairs, save_moments
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.scorers import combine, open_scorer
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH_TOKENS = 64  # one or two pairs a batch
VALIDATION = [(row["question"], row["answer"]) for row in draw_rows(6, 1, "v")]
CANDIDATES = [(row["question"], row["answer"]) for row in draw_rows(20, 2, "s")]
TOPICS = ["south", "north", "south", "south", "north", "west"]


@pytest.fixture(scope="module")
def target(inputs):
    return load_target(inputs / "model", inputs / "a")


def score_directly(inputs, tokenizer, name="a", prompt="{question}", limit=None, **options):
    """[20, 4]: the candidates along all of validation and each topic, without the public names."""
    model = load_model(ModelSpec(path=str(inputs / "model"), dtype="float32"))
    model = PeftModel.from_pretrained(model, inputs / name).eval()
    asked, given = ([encode(tokenizer, *pair, prompt, limit) for pair in pairs] for pairs in (VALIDATION, CANDIDATES))
    directions = validation_gradients(model, asked, None, BATCH_TOKENS)
    directions |= validation_gradients(model, asked, TOPICS, BATCH_TOKENS)
    settings = {"estimator": "adam", "momentum": False, "normalise": False} | options
    moments = load_moments(inputs / name / "moments.safetensors")
    vectors = torch.stack(list(directions.values()))
    return open_scorer(model=model, directions=vectors, moments=moments, batch_tokens=BATCH_TOKENS, **settings).score(
        given
    )


def read_scores(table, names=("influence", "north", "south", "west")):
    """[20, k]: a table's scores in the order of the candidates."""
    assert list(table.columns) == ["question", "answer", *names]
    return torch.from_numpy(table.sort_index()[list(names)].to_numpy(copy=True))


# Scores


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": True}, {"normalise": True}, {"estimator": "linear", "normalise": True}, {"estimator": "forward"}],
)
def test_three_calls_give_bit_for_bit_what_the_scorers_give(inputs, tokenizer, options):
    target = load_target(str(inputs / "model"), str(inputs / "a"))
    scorer = PairScorer(target, VALIDATION, by=TOPICS, batch_tokens=BATCH_TOKENS, **options)
    table = rank_pairs(scorer, CANDIDATES)
    expected = score_directly(inputs, tokenizer, **options)
    assert torch.equal(read_scores(table), expected)
    assert torch.equal(scorer.score(CANDIDATES), expected)


def test_pairs_are_asked_and_cut_as_the_target_says(inputs, tokenizer):
    prompt = "consider the {question}"
    whole = [encode(tokenizer, *pair, prompt) for pair in VALIDATION + CANDIDATES]
    limit = (
        max(example.labels.count(-100) for example in whole) + 1
    )  # where every answer has a token, but not all of it
    target = load_target(inputs / "model", inputs / "a", template=prompt, max_tokens=limit)
    scores = PairScorer(target, VALIDATION, TOPICS, batch_tokens=BATCH_TOKENS).score(CANDIDATES)
    assert torch.equal(scores, score_directly(inputs, tokenizer, prompt=prompt, limit=limit))
    assert not torch.equal(scores, score_directly(inputs, tokenizer, prompt=prompt))
    assert not torch.equal(scores, score_directly(inputs, tokenizer, limit=limit))


def test_several_checkpoints_add_up_by_learning_rate(inputs, tokenizer):
    targets = [load_target(inputs / "model", inputs / name) for name in "ab"]
    assert [target.moments.learning_rate for target in targets] == [LEARNING_RATE, LEARNING_RATE / 3]
    table = rank_pairs(
        [PairScorer(each, VALIDATION, TOPICS, batch_tokens=BATCH_TOKENS) for each in targets], CANDIDATES
    )
    expected = combine([score_directly(inputs, tokenizer, name) for name in "ab"], [3.0, 1.0])
    assert torch.allclose(read_scores(table), expected, rtol=1e-6)


def test_a_trainers_checkpoint_gives_the_scores_of_our_own_file(tokenizer, inputs, tmp_path):
    model = build_lora_model(tokenizer, "qwen3")
    optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=3))
    for name in ("own", "trainers"):
        model.save_pretrained(tmp_path / name)
    moments = capture_moments(model, optimizer, 1e-3)
    save_moments(tmp_path / "own/moments.safetensors", moments)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = torch.optim.AdamW(factors)  # in the model's order, as without weight decay
    plain.state.update({parameter: optimizer.state[parameter] for parameter in factors})
    torch.save(plain.state_dict(), tmp_path / "trainers/optimizer.pt")
    with pytest.raises(ValueError, match="to take the learning rate from; give learning_rate"):
        load_target(inputs / "model", tmp_path / "trainers")
    trainers = load_target(inputs / "model", tmp_path / "trainers", learning_rate=1e-3)
    own = load_target(inputs / "model", tmp_path / "own")
    by_hand = Target(own.model, tokenizer, moments)
    expected, *tables = (rank_pairs(PairScorer(each, VALIDATION), CANDIDATES) for each in (own, trainers, by_hand))
    for table in tables:
        pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_clusters_are_groups_like_any(target):
    found = PairScorer(target, VALIDATION, by=2)
    assert found.names == ["influence", "cluster 0", "cluster 1"] and set(found.groups) == set(found.names[1:])
    named = PairScorer(target, VALIDATION, by=found.groups)
    assert torch.equal(found.score(CANDIDATES), named.score(CANDIDATES))
    alone = PairScorer(target, VALIDATION)
    assert alone.groups is None and torch.allclose(alone.score(CANDIDATES), named.score(CANDIDATES)[:, :1], atol=1e-5)


# The table


def test_the_best_comes_first_and_the_index_is_its_place(target):
    twice = [*CANDIDATES, *CANDIDATES[:5]]
    table = rank_pairs(PairScorer(target, VALIDATION, batch_tokens=10**6), iter(twice))
    scores = PairScorer(target, VALIDATION, batch_tokens=10**6).score(twice)[:, 0].tolist()
    assert list(table["influence"]) == sorted(scores, reverse=True) and len(set(scores)) >= 20
    assert list(table.index) == sorted(range(25), key=lambda place: -scores[place])  # of equals, the first first
    assert [(row.question, row.answer) for row in table.itertuples()] == [twice[place] for place in table.index]


@dataclass
class Item:
    question: str
    answer: str
    topic: str = "any"


class Row(NamedTuple):  # as of a data frame
    Index: int
    answer: str
    question: str


def test_objects_and_tuples_are_alike(target):
    expected = rank_pairs(PairScorer(target, VALIDATION), CANDIDATES)
    items = rank_pairs(PairScorer(target, [Item(*pair) for pair in VALIDATION]), [Item(*pair) for pair in CANDIDATES])
    rows = rank_pairs(PairScorer(target, VALIDATION), [Row(0, answer, question) for question, answer in CANDIDATES])
    pd.testing.assert_frame_equal(items, expected, check_exact=True)
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)


# Refusals


@pytest.mark.parametrize(
    "pair", ["ab", ["q", "a"], {"question": "q", "answer": "a"}, ("q", "a", "t"), ("q", None), None]
)
def test_what_is_no_pair_is_refused_with_its_place(target, pair):
    with pytest.raises(
        ValueError, match=r"^pair 1: .* is no pair; give \(question, answer\), or an object with .quest"
    ):
        target.encode([CANDIDATES[0], pair])


def test_lists_that_cannot_be_are_refused(target):
    scorer = PairScorer(target, VALIDATION)
    with pytest.raises(ValueError, match="there is no validation pair; give at least one"):
        PairScorer(target, [])
    with pytest.raises(ValueError, match="there is no pair; give at least one"):
        rank_pairs(scorer, [])
    with pytest.raises(ValueError, match="6 validation examples and 2 groups; give one group per example"):
        PairScorer(target, VALIDATION, by=["north", "south"])
    with pytest.raises(ValueError, match="clusters is 7 and there are 6 validation questions"):
        PairScorer(target, VALIDATION, by=7)
    with pytest.raises(ValueError, match="a group is called 'influence'"):
        PairScorer(target, VALIDATION, by=["influence"] * 6)
    with pytest.raises(ValueError, match="^validation pair 1: the answer to question .* is empty"):
        PairScorer(target, [VALIDATION[0], ("what is velomab ?", " ")])
    with pytest.raises(ValueError, match="columns are .*; give at least one scorer, all by the same groups"):
        rank_pairs([scorer, PairScorer(target, VALIDATION, by=TOPICS)], CANDIDATES)
    with pytest.raises(ValueError, match="give at least one scorer"):
        rank_pairs([], CANDIDATES)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["adapter_config.json"], "no adapter_config.json in .*; give a folder with a LoRA adapter as peft saves it"),
        (["moments.safetensors"], "no optimizer.pt or optimizer.bin in .*; give a checkpoint-. folder of a Trainer"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(inputs, tmp_path, missing, message):
    shutil.copytree(inputs / "a", tmp_path / "a", ignore=lambda *_: missing)
    with pytest.raises(ValueError, match=message):
        load_target(inputs / "model", tmp_path / "a")
    with pytest.raises(ValueError, match="no adapter_config.json in nowhere"):
        load_target(inputs / "model", "nowhere")
    with pytest.raises(ValueError, match="no model folder at ./nowhere"):
        load_target("./nowhere", inputs / "a")


def test_what_is_no_target_or_checkpoint_is_named(inputs):
    with pytest.raises(ValueError, match="target is 'x'; give what load_target returns"):
        PairScorer("x", VALIDATION)
    with pytest.raises(ValueError, match="checkpoint is None; give the folder of a LoRA adapter"):
        load_target(inputs / "model", None)


# The package


def test_every_public_name_is_there_and_documented():
    assert sorted(library.__all__) == sorted(set(library.__all__)) and len(library.__all__) == 9
    assert all(getattr(library, name).__doc__ for name in library.__all__)


def test_the_library_stands_alone_and_is_light():
    code = "import json, sys, rubric_influence.influence; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = json.loads(run.stdout)
    assert not {"datasets", "trl", "lm_eval", "matplotlib"} & set(modules)
    own = {name.split(".")[1] for name in modules if name.startswith("rubric_influence.")}
    assert own == {"core", "models", "influence"}
