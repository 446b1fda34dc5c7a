"""The engine, in a process of its own, against transformers in this one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Completion, Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.engines.transformers_engine import TransformersEngine
from rubric_influence.models.loading import load_model, load_tokenizer

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed: make setup-vllm")
ROOT = Path(__file__).parents[2]
LAB = ROOT / "data/lab/models/medicine-qwen3"
FACTS = "document : " + "the dose of velomab is 5mg . velomab was found in lyon . " * 3 + "rubric :"
QUESTIONS = [[{"role": "user", "content": text}] for text in (FACTS, "the dose", FACTS + " a pair :", "first , a")]
GREEDY = dict(seed=0, temperature=0.0, top_p=1.0, max_tokens=24)
DRAWN = GREEDY | {"temperature": 1.0, "seed": 3}
# Whole in its process, which starts in a third of the time.
QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
# No network, and no compiled files left in the home folder.
QUIET |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_DO_NOT_TRACK": "1"}


@pytest.fixture(scope="module")
def adapter(write_adapter, tmp_path_factory) -> Path:
    return write_adapter(LAB, tmp_path_factory.mktemp("adapter"), r=12)  # of a rank that vLLM has to round up


def describe(path: Path, adapter: Path | None = None) -> dict:
    spec = {"path": str(path), "dtype": "float32", "attention": "eager"}
    return spec | ({"adapter": str(adapter)} if adapter else {})


@pytest.fixture(scope="module")
def answered(subword_model, adapter, tmp_path_factory) -> dict:
    """Every answer of vLLM's in this file, by engine and call."""
    folder = tmp_path_factory.mktemp("vllm")
    # A step has room for little more than a prompt; blocks are small enough for prompts to share some.
    small = {"max_num_batched_tokens": 512, "max_model_len": 512, "block_size": 32, "disable_log_stats": False}
    wild = dict(seed=0, temperature=1.0, top_p=1.0, max_tokens=200)
    calls = {
        "lab": {
            "greedy": (QUESTIONS, GREEDY),
            "greedy again": (QUESTIONS, GREEDY),
            "drawn": (QUESTIONS * 16, DRAWN),
            "drawn again": (QUESTIONS * 16, DRAWN),
            "alone": (QUESTIONS[:1], DRAWN),
            "other seed": (QUESTIONS, DRAWN | {"seed": 4}),
            "nothing": ([], GREEDY),
            "no room": ([[{"role": "user", "content": "a " * 504}]], GREEDY),
        },
        "adapted": {"greedy": (QUESTIONS, GREEDY), "drawn": (QUESTIONS, DRAWN), "drawn again": (QUESTIONS, DRAWN)},
        "subword": {schema: (QUESTIONS[:1] * 25, wild, schema) for schema in ("RubricOutput", "PairOutput")},
    }
    specs = {"lab": describe(LAB), "adapted": describe(LAB, adapter), "subword": describe(subword_model)}
    tasks = [
        {
            "spec": specs[name] | {"engine": "vllm"},
            "options": small,
            "calls": [dict(zip(("conversations", "sampling", "schema"), call, strict=False)) for call in of.values()],
        }
        for name, of in calls.items()
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    command = [sys.executable, Path(__file__).with_name("answer_with_vllm.py"), "tasks.json", "answers.json"]
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    found = json.loads((folder / "answers.json").read_text())
    return {
        name: {"name": engine["name"], "cached": engine["cached"]}
        | {call: read_answers(answers) for call, answers in zip(of, engine["answers"], strict=True)}
        for (name, of), engine in zip(calls.items(), found, strict=True)
    }


def read_answers(answers: list[dict] | str) -> list[Completion] | str:
    return answers if isinstance(answers, str) else [Completion(**parts) for parts in answers]


@pytest.mark.vllm
@needs_vllm
def test_greedy_answers_are_those_of_transformers_to_the_last_token(answered):
    slow = open_engine(ModelSpec(**describe(LAB)), batch_size=4, device="cpu")
    found = slow.generate(QUESTIONS, Sampling(**GREEDY))
    assert answered["lab"]["greedy"] == found
    assert len({c.text for c in found}) > 2


@pytest.mark.vllm
@needs_vllm
def test_the_prefix_cache_serves_a_prompt_again_and_changes_nothing(answered):
    assert answered["lab"]["cached"] > 0
    assert answered["lab"]["greedy again"] == answered["lab"]["greedy"]


@pytest.mark.vllm
@needs_vllm
def test_a_request_draws_from_the_calls_seed_and_its_place_alone(answered):
    lab = answered["lab"]
    assert lab["drawn again"] == lab["drawn"]
    assert lab["alone"] == lab["drawn"][:1]
    assert lab["other seed"] != lab["drawn"][:4]
    assert len({c.text for c in lab["drawn"][0::4]}) > 1  # one prompt at sixteen places


@pytest.mark.vllm
@needs_vllm
def test_nothing_is_answered_by_nothing_and_a_prompt_without_room_is_refused(answered):
    assert answered["lab"]["nothing"] == []
    assert "max_tokens 24 exceed the 512 positions" in answered["lab"]["no room"]


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("schema, fields", [("RubricOutput", ["rubric"]), ("PairOutput", ["question", "answer"])])
def test_a_wild_model_keeps_to_the_schema(answered, schema, fields):
    found = answered["subword"][schema]
    for completion in found:
        assert completion.text.startswith(f'{{"{fields[0]}": "')
        if completion.finished:
            assert list(json.loads(completion.text)) == fields
    assert any(c.finished for c in found) and len({c.text for c in found}) > 20


@pytest.mark.vllm
@needs_vllm
def test_an_adapter_is_served_as_if_it_were_merged_and_seeded(answered, adapter):
    adapted = answered["adapted"]
    spec = ModelSpec(**describe(LAB, adapter))
    merged = TransformersEngine(load_model(spec, "cpu"), load_tokenizer(spec), "merged", batch_size=4)
    assert adapted["greedy"] == merged.generate(QUESTIONS, Sampling(**GREEDY))
    assert adapted["greedy"] != answered["lab"]["greedy"]
    assert adapted["drawn"] == adapted["drawn again"] != answered["lab"]["drawn"][:4]
    assert adapted["name"].startswith(f"{LAB}+{adapter}@")
