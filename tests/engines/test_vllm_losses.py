"""Losses and scores by vLLM, in processes of its own, against torch in this one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr

from rubric_influence.cli.main import main
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.vllm_engine import VLLMEngine
from rubric_influence.engines.vllm_losses import read_shape
from rubric_influence.influence.moments import capture_moments, save_moments
from rubric_influence.models.examples import collate, encode
from rubric_influence.models.loading import attach_adapter, load_model, load_tokenizer
from rubric_influence.models.losses import sweep_losses

needs_vllm = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vllm is not installed: make setup-vllm")
ROOT = Path(__file__).parents[2]
LAB = ROOT / "data/lab/models/medicine-qwen3"
SPEC = ModelSpec(path=str(LAB), dtype="float32", attention="eager")
# Whole in its process, which starts in a third of the time; no network, no compiled files left in the home folder.
QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
QUIET |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_DO_NOT_TRACK": "1"}


def run(*command):
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def examples(draw_pairs):
    tokenizer = load_tokenizer(SPEC)
    return [encode(tokenizer, pair.question, pair.answer) for pair in draw_pairs(24)]


@pytest.fixture(scope="module")
def adapters(write_adapter, tmp_path_factory):
    """Two of a rank that vLLM has to round up, on other modules."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = "all-linear", ["q_proj", "o_proj"]
    return [write_adapter(LAB, folder / f"{seed}", seed, r=12, targets=on) for seed, on in enumerate(targets)]


@pytest.fixture(scope="module")
def measured(adapters, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    too_high = shutil.copytree(adapters[0], folder / "rank")
    change(too_high, r=1000)
    # A step takes less than all prompts at once, and cuts some of them in pieces.
    options = {"max_num_batched_tokens": 64, "max_model_len": 128, "block_size": 32, "enable_chunked_prefill": True}
    task = {"model": str(LAB), "adapters": list(map(str, adapters)), "too_high": str(too_high), "options": options}
    task["examples"] = [[example.input_ids, example.labels] for example in examples]
    (folder / "task.json").write_text(json.dumps(task))
    result = run(Path(__file__).with_name("measure_with_vllm.py"), folder / "task.json", folder / "found.json")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def change(adapter, **settings):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.vllm
@needs_vllm
def test_losses_are_torchs_under_one_adapter_after_another(measured, adapters, examples):
    for adapter, found in zip([*adapters, adapters[0]], measured["losses"], strict=True):
        model = attach_adapter(load_model(SPEC, "cpu"), str(adapter), str(LAB))
        expected = sweep_losses(model, examples, batch_tokens=512)
        assert (torch.tensor(found).double() - expected).abs().max() < 2e-6 * expected.max()
        assert expected.std() > 0.1


@pytest.mark.vllm
@needs_vllm
def test_an_adapter_is_served_again_to_the_bit_and_differs_from_the_other(measured):
    first, other, again = measured["losses"]
    assert first == again != other
    assert measured["shape"] == [12, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]]


@pytest.mark.vllm
@needs_vllm
def test_samples_without_room_and_ranks_that_vllm_does_not_serve_are_refused(measured):
    room, rank = measured["refused"]
    assert "example 1 has 128 tokens, and vLLM scores up to 127 of" in room
    assert "the LoRA adapter is of rank 1000, vLLM serves up to 512" in rank


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_dora": True}, "has use_dora, which vLLM does not serve; merge it, or do without vllm"),
        ({"alpha_pattern": {"q_proj": 3}}, "has alpha_pattern, which vLLM does not serve"),
        ({"bias": "lora_only", "rank_pattern": {"q_proj": 2}}, "has rank_pattern, bias, which vLLM does not serve"),
        ({"peft_type": "IA3"}, "is no LoRA, and vLLM serves no other"),
    ],
)
def test_adapters_that_vllm_would_serve_otherwise_than_trained_are_refused(adapters, tmp_path, settings, message):
    changed = shutil.copytree(adapters[1], tmp_path / "changed")
    change(changed, **settings)
    with pytest.raises(ValueError, match=message):
        read_shape(str(LAB), [changed])


@needs_vllm
def test_such_an_adapter_is_refused_for_writing_texts_too_before_vllm_starts(adapters, tmp_path):
    changed = shutil.copytree(adapters[1], tmp_path / "changed")
    change(changed, alpha_pattern={"q_proj": 3})
    with pytest.raises(ValueError, match="has alpha_pattern, which vLLM does not serve"):
        VLLMEngine(SPEC.model_copy(update={"adapter": str(changed)}))


def test_an_adapted_lm_head_is_refused(write_adapter, tmp_path):
    write_adapter(LAB, tmp_path, targets=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="has lm_head, of which vLLM gives no losses"):
        read_shape(str(LAB), [tmp_path])


@pytest.fixture(scope="module")
def inputs(draw_pairs, examples, tmp_path_factory):
    """A folder with a checkpoint, validation.jsonl and samples.jsonl."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    model = get_peft_model(load_model(SPEC, "cpu"), LoraConfig(r=12, lora_alpha=24, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for start in (0, 8, 16):
        model(**collate(examples[start : start + 8])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "checkpoint")
    save_moments(folder / "checkpoint/moments.safetensors", capture_moments(model, optimizer, 3e-3))
    for name, count, seed in (("validation", 8, 1), ("samples", 40, 2)):
        rows = [dict(id=f"{i}", question=p.question, answer=p.answer) for i, p in enumerate(draw_pairs(count, seed))]
        rows = [row | {"topic": ("north", "south")[i % 2]} for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def arrange(inputs, out, *options):
    files = [part for name in ("validation", "samples") for part in (f"--{name}", str(inputs / f"{name}.jsonl"))]
    checkpoint = ["--model", str(LAB), "--checkpoint", str(inputs / "checkpoint")]
    return ["score", *checkpoint, *files, "--out", str(out), "--by", "topic", *options]


@pytest.mark.vllm
@needs_vllm
def test_a_corpus_is_scored_by_vllm_as_by_torch(inputs, tmp_path):
    forward = ["--estimator", "forward", "--dot", "--momentum"]
    assert main(arrange(inputs, tmp_path / "torch.parquet", *forward)) == 0
    command = arrange(inputs, tmp_path / "served.parquet", *forward, "--engine", "vllm", "--batch-tokens", "256")
    result = run("-m", "rubric_influence", *command)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    served, ours = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("served", "torch"))
    assert served[["id", "tokens"]].equals(ours[["id", "tokens"]])
    for name in ("influence", "north", "south"):
        assert spearmanr(served[name], ours[name]).statistic >= 0.99
        assert (served[name] - ours[name]).abs().max() < 1e-3 * ours[name].std()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served.parquet", "torch.parquet"]


@pytest.mark.parametrize(
    "options", [["--estimator", "adam"], ["--estimator", "forward", "--dot", "--dtype", "bfloat16"]]
)
@pytest.mark.vllm
@needs_vllm
def test_what_vllm_cannot_score_is_refused(inputs, tmp_path, capsys, options):
    assert main(arrange(inputs, tmp_path / "scores.parquet", "--engine", "vllm", *options)) == 1
    assert "add --estimator forward --dot --dtype float32" in capsys.readouterr().err
