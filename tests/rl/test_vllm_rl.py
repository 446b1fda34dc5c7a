"""GRPO whose rubrics are sampled by a real vLLM that shares the process with training, as GPU profiles have it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vllm is not installed: make setup-vllm"),
]
ROOT = Path(__file__).parents[2]
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
QUIET |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def test_every_step_samples_from_the_generator_that_the_last_step_left(lab_config, tmp_path):
    # Steps so large that the logits of yesterday's weights would be far off.
    config = lab_config({"rl": {"vllm": "colocate", "learning_rate": 0.003}})
    profile = tmp_path / "params.yaml"
    profile.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, Path(__file__).with_name("train_with_vllm.py"), profile, tmp_path]
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    steps = [row for row in json.loads((tmp_path / "log.json").read_text()) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    # vLLM's log-probabilities of what it sampled beside the trainer's, which has the weights of the step before.
    assert max(row["sampling/sampling_logp_difference/mean"] for row in steps) < 0.02
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (Path(config.models.rubric_generator.path), tmp_path / "out")
    )
    assert max(float((after[name] - before[name]).abs().max()) for name in before if name in after) > 0.003
    assert len((tmp_path / "out/trajectories.jsonl").read_text().splitlines()) == 3 * 2 * 4
    assert all(torch.isfinite(weight).all() for weight in after.values())
