import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.config import Config
from rubric_influence.core.corpus_sections import LabCorpus, TextCorpus
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.profiles import load_config, merge

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILES = sorted([*REPOSITORY.glob("params.yaml"), *REPOSITORY.glob("conf/*.yaml")])
MODEL = {"path": "somewhere"}
TRAINING = {"epochs": 1, "batch_size": 2, "learning_rate": 0.5, "max_tokens": 8}
VALUES = {
    "seeds": [0],
    "corpus": {
        "kind": "lab",
        "field": "medicine.yaml",
        "documents": 4,
        "dev_documents": 1,
        "validation_entities": 1,
        "guard_entities": 1,
        "seed": 0,
    },
    "models": {"rubric_generator": MODEL, "teacher": MODEL, "target": MODEL},
    "prompts": {
        "rubric": "{document}",
        "pair": "{document} {rubric}",
        "pair_without_rubric": "{document}",
        "expert_rubrics": ["ask"],
    },
    "budget": {"initial_pairs": 1, "final_pairs": 1},
    "synthesis": {
        "batch_size": 1,
        "max_rubric_tokens": 1,
        "max_pair_tokens": 1,
        "max_prompt_tokens": 1,
        "constrained": False,
    },
    "lora": {"r": 1, "alpha": 1},
    "warmup": TRAINING,
    "influence": {"momentum": False, "batch_tokens": 1, "directions": "mean"},
    "gate": {"learning_rate": 0.5},
    "rl": {"steps": 1, "documents_per_step": 1, "group_size": 2, "learning_rate": 0.5, "reward": "influence"},
    "finetuning": TRAINING,
    "evaluation": {},
}
TEXT_CORPUS = {"kind": "text", "documents": "d", "exam": "e", "exam_format": "medqa", "seed": 0}


@pytest.fixture
def profile(tmp_path):
    """A valid profile's path."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return path


def test_a_profile_reads_as_its_values(profile):
    config = load_config(profile)
    assert config == Config.model_validate(VALUES)
    assert isinstance(config.corpus, LabCorpus)
    assert config.warmup.adam_betas == (0.9, 0.999)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_committed_profile_is_valid(path):
    load_config(path)


def test_changes_are_laid_over_the_profile_and_checked(profile):
    assert load_config(profile, {"rl": {"steps": 7}}).rl.steps == 7
    with pytest.raises(ValueError, match="rl.step: unknown parameter"):
        load_config(profile, {"rl": {"step": 7}})


def test_a_config_cannot_be_changed_after_it_was_checked(profile):
    with pytest.raises(ValueError, match="frozen"):
        load_config(profile).rl.steps = 7


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("rl", "group_size", 1, "rl.group_size: .* greater than or equal to 2; found 1"),
        ("rl", "steps", 0, "rl.steps: .* greater than or equal to 1; found 0"),
        ("rl", "steps", True, "rl.steps: .* valid integer; found True"),
        ("rl", "steps", 1.0, "rl.steps: .* valid integer; found 1.0"),
        ("rl", "learning_rate", "1e-5", "rl.learning_rate: .*found '1e-5' .*write 1.0e-5"),
        ("rl", "learning_rate", float("inf"), "rl.learning_rate: .*finite"),
        ("rl", "learning_rate", float("nan"), "rl.learning_rate: "),
        ("rl", "kl", -0.1, "rl.kl: .*found -0.1"),
        ("warmup", "micro_batch", 3, r"warmup: micro_batch \(3\) must divide batch_size \(2\)"),
        ("rl", "micro_batch", 3, r"rl: micro_batch \(3\) must divide documents_per_step \* group_size \(2\)"),
        ("rl", "reward", "gold", "rl.reward: .*'set_influence', 'influence', .* or 'shuffled'; found 'gold'"),
        ("synthesis", "constrained", "yes", "synthesis.constrained: .*boolean; found 'yes'"),
        ("warmup", "fraction", 0.0, "warmup.fraction: .*found 0.0"),
        ("warmup", "adam_betas", [0.9], "warmup.adam_betas"),
        ("prompts", "expert_rubrics", [], "prompts.expert_rubrics: .*at least 1 item"),
        ("prompts", "pair", "{document}", r"prompts: prompts.pair has no {rubric} slot; it is '{document}'$"),
        ("quality", "grounding_meaning", 0.4, "quality: grounding_meaning is 0.4, .*; set embedder"),
        ("corpus", "kind", "web", "corpus: .*'web'"),
        ("corpus", "dev_documents", 4, r"corpus.lab: dev_documents \(4\) must be below documents \(4\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(profile, section, key, value, message):
    with pytest.raises(ValueError, match=message):
        load_config(profile, {section: {key: value}})


def test_all_faults_are_told_at_once(tmp_path):
    values = copy.deepcopy(VALUES)
    del values["lora"]
    values["rl"]["steps"] = -1
    values["extra"] = 1
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_config(tmp_path / "p.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and lines[0].endswith("p.yaml is not a valid profile:")
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"lora", "rl.steps", "extra"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"a: 2001-99-99", "is not YAML"),
        (b"[" * 1000, "is not YAML"),
        (b"- 1", "holds list"),
        (b"", "holds NoneType"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, content, message):
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"p.yaml {message}"):
        load_config(tmp_path / "p.yaml")


def test_an_absent_profile_is_named(tmp_path):
    with pytest.raises(ValueError, match="no profile at .*none.yaml; give a YAML file"):
        load_config(tmp_path / "none.yaml")


def test_a_text_corpus_leaves_a_test():
    assert TextCorpus(**TEXT_CORPUS).max_documents is None
    with pytest.raises(ValueError, match=r"validation \(0.2\) \+ guard \(0.1\) \+ dev \(0.7\) must leave"):
        TextCorpus(**TEXT_CORPUS, dev=0.7)


def test_merge_lays_changes_over_without_touching_the_base():
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merge(base, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}


@given(st.binary(max_size=100) | st.text(alphabet="ab:-[]{}!&*#'\"\n 01", max_size=60).map(str.encode))
def test_any_bytes_are_refused_with_a_value_error_that_names_the_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("profiles") / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="p.yaml"):
        load_config(path)


def test_an_endpoint_has_no_adapter_of_ours():
    with pytest.raises(ValueError, match="vllm serve --lora-modules NAME=FOLDER"):
        ModelSpec(path="m", engine="openai", endpoint={"base_url": "https://x/v1"}, adapter="folder")


def test_a_seed_that_is_named_twice_is_refused(profile):
    with pytest.raises(ValueError, match=r"seeds \[0, 1, 0\] name \[0\] twice"):
        load_config(profile, {"seeds": [0, 1, 0]})
