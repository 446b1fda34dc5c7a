import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from rubric_influence.core.files import write_records
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.moments import load_moments, match_moments, normalise_name
from rubric_influence.models.examples import collate, encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.training.fine_tuning import (
    KeepCheckpoints,
    TuningRun,
    build_lora,
    fine_tune,
    list_checkpoints,
    load_fine_tuned,
)

REPOSITORY = Path(__file__).resolve().parents[2]
# What the other process runs: as `train` below, but kill -9 within the second epoch.
KILLED = """
import os, signal, sys
from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace
from rubric_influence.training.fine_tuning import KeepCheckpoints, TuningRun, fine_tune

config = Config.model_validate_json(open("config.json").read())
step = KeepCheckpoints.on_optimizer_step

def die_in_the_second_epoch(self, args, state, control, **kwargs):
    if state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, args, state, control, **kwargs)

KeepCheckpoints.on_optimizer_step = die_in_the_second_epoch
run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0, checkpoints=2)
fine_tune(run, read_records("pairs.jsonl", QAPair), Workplace("out", "scratch"))
"""


@pytest.fixture(scope="module")
def pairs(draw_pairs):
    return draw_pairs(10)


@pytest.fixture(scope="module")
def config(lab_config):
    """Three epochs of three steps."""
    return lab_config({"warmup": {"epochs": 3, "batch_size": 4, "schedule": "linear"}, "lora": {"r": 4, "alpha": 8}})


def train(config, pairs, folder, seed=0):
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, seed, checkpoints=2)
    return fine_tune(run, pairs, Workplace(folder / "out", folder / "scratch"))


def read_run(folder):
    """The bytes of every file by its path, or, of moments, the bytes of every tensor and the scalars."""
    found = {}
    for path in folder.rglob("*.*"):
        name = path.relative_to(folder).as_posix()
        if path.name == "moments.safetensors":  # safetensors shuffles the metadata
            m = load_moments(path)
            found[name] = (m.step, m.betas, m.eps, m.learning_rate)
            for tensors in (m.exp_avg, m.exp_avg_sq):
                found[name] += tuple((key, tensor.numpy().tobytes()) for key, tensor in sorted(tensors.items()))
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(config, pairs, tmp_path_factory):
    """The folder that an undisturbed run wrote, and its log."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = train(config, pairs, folder)
    assert not (folder / "scratch").exists()
    return folder / "out", log


def test_the_last_epochs_are_kept_with_adapter_and_moments(undisturbed):
    out, log = undisturbed
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-2", "checkpoint-3"]
    for checkpoint in list_checkpoints(out):
        names = ["adapter_config.json", "adapter_model.safetensors", "moments.safetensors"]
        assert sorted(path.name for path in checkpoint.iterdir()) == names
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_an_adapters_config_does_not_depend_on_the_order_of_a_set(undisturbed):
    for checkpoint in list_checkpoints(undisturbed[0]):
        targets = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
        assert targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_moments_fit_the_adapter_beside_them_and_know_their_epoch(undisturbed, config):
    out, _ = undisturbed
    # Linear from 0.004 over nine steps; an epoch's three are 6/9, 5/9, 4/9 and 3/9, 2/9, 1/9 of it.
    for checkpoint, steps, rate in zip(list_checkpoints(out), (6, 9), (0.004 * 5 / 9, 0.004 * 2 / 9), strict=True):
        moments = load_moments(checkpoint / "moments.safetensors")
        assert (moments.step, moments.betas, moments.eps) == (steps, (0.9, 0.999), 1e-8)
        assert moments.learning_rate == pytest.approx(rate)
        matched = match_moments(moments, load_fine_tuned(config.models.target, checkpoint))
        adapter = load_file(checkpoint / "adapter_model.safetensors")
        assert {normalise_name(name) for name in matched.exp_avg} == {
            normalise_name(name.replace(".weight", ".default.weight")) for name in adapter
        }
        assert all(v.count_nonzero() for v in matched.exp_avg_sq.values())


def test_the_first_moment_is_the_gradient_of_its_own_parameter(config, pairs, tmp_path):
    one_step = config.warmup.model_copy(update={"epochs": 1, "batch_size": 16})
    target = config.models.target
    run = TuningRun(target, config.prompts, config.lora, one_step, 7)
    fine_tune(run, pairs, Workplace(tmp_path / "out", tmp_path / "scratch"))
    torch.manual_seed(7)  # the same fresh adapter
    model = get_peft_model(load_model(target), build_lora(config.lora))
    tokenizer = load_tokenizer(target)
    examples = [encode(tokenizer, pair.question, pair.answer) for pair in pairs]
    model(**collate(examples, tokenizer.pad_token_id)).loss.backward()
    moments = match_moments(load_moments(tmp_path / "out/checkpoint-1/moments.safetensors"), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # lora_B starts at zero, so lora_A has no gradient yet
            similarity = torch.cosine_similarity(moments.exp_avg[name].flatten(), parameter.grad.flatten(), dim=0)
            assert similarity > 0.98, name
        elif "lora_A" in name:
            assert not moments.exp_avg[name].any()


def test_accumulated_micro_batches_are_the_whole_batch(config, pairs, tmp_path):
    moments = []
    for micro_batch in (None, 4):
        settings = config.warmup.model_copy(update={"epochs": 1, "batch_size": 12, "micro_batch": micro_batch})
        folder = tmp_path / str(micro_batch)
        target = config.models.target
        run = TuningRun(target, config.prompts, config.lora, settings, 7)
        fine_tune(run, pairs, Workplace(folder / "out", folder / "scratch"))
        moments.append(load_moments(folder / "out/checkpoint-1/moments.safetensors"))
    whole, accumulated = moments
    assert (whole.step, accumulated.step) == (1, 1)
    for name, first in whole.exp_avg.items():  # fp32 sums in another order
        assert torch.allclose(first, accumulated.exp_avg[name], rtol=1e-3, atol=1e-6), name


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(undisturbed, config, pairs, tmp_path):
    train(config, pairs, tmp_path / "same")
    assert read_run(tmp_path / "same/out") == read_run(undisturbed[0])
    train(config, pairs, tmp_path / "other", seed=1)
    name = "checkpoint-3/adapter_model.safetensors"
    assert read_run(tmp_path / "other/out")[name] != read_run(undisturbed[0])[name]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_stops_before_an_epoch_is_saved_goes_on_to_the_same_bytes(
    undisturbed, config, pairs, tmp_path, monkeypatch, epoch
):
    keep = KeepCheckpoints.on_epoch_end

    def stop(self, args, state, control, **kwargs):
        keep(self, args, state, control, **kwargs)
        if round(state.epoch) == epoch:
            raise RuntimeError("the machine stopped")

    with monkeypatch.context() as patch:
        patch.setattr(KeepCheckpoints, "on_epoch_end", stop)
        with pytest.raises(RuntimeError, match="the machine stopped"):
            train(config, pairs, tmp_path)
    assert not (tmp_path / "out").exists()
    train(config, pairs, tmp_path)
    assert read_run(tmp_path / "out") == read_run(undisturbed[0])


@pytest.mark.faults
def test_a_killed_run_with_a_half_written_checkpoint_goes_on_to_the_same_bytes(undisturbed, config, pairs, tmp_path):
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    write_records(tmp_path / "pairs.jsonl", pairs)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    trainer = tmp_path / "scratch/trainer"
    assert [path.name for path in trainer.glob("checkpoint-*")] == ["checkpoint-3"]
    # Killed while writing the next one, the trainer leaves weights without the optimizer and its own state.
    (trainer / "checkpoint-6").mkdir()
    (trainer / "checkpoint-6/adapter_model.safetensors").write_bytes(b"half")
    train(config, pairs, tmp_path)
    assert read_run(tmp_path / "out") == read_run(undisturbed[0])


def test_a_run_that_had_ended_but_not_delivered_delivers(undisturbed, config, pairs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("rubric_influence.models.processes.deliver", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, pairs, tmp_path)
    train(config, pairs, tmp_path)
    assert read_run(tmp_path / "out") == read_run(undisturbed[0])


def test_checkpoints_of_an_older_run_do_not_survive(config, pairs, tmp_path):
    old = tmp_path / "out/checkpoint-9"
    old.mkdir(parents=True)
    one_epoch = config.warmup.model_copy(update={"epochs": 1})
    run = TuningRun(config.models.target, config.prompts, config.lora, one_epoch, 0)
    fine_tune(run, pairs, Workplace(tmp_path / "out", tmp_path / "scratch"))
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_an_adapter_changes_what_its_model_says(undisturbed, config):
    spec = config.models.target
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        base, tuned = load_model(spec)(ids).logits, load_fine_tuned(spec, list_checkpoints(undisturbed[0])[-1])(ids)
    assert not torch.allclose(base, tuned.logits, atol=1e-3)


def test_no_pairs_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="no valid pairs to fine-tune on; look at the rejected pairs"):
        train(config, [], tmp_path)


def test_checkpoints_come_by_epoch_and_none_is_an_error(tmp_path):
    for epoch in (10, 9, 8):
        (tmp_path / f"checkpoint-{epoch}").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-8", "checkpoint-9", "checkpoint-10"]
    with pytest.raises(ValueError, match="no checkpoint-.* folder in .*nowhere; run the stage that trains it first"):
        list_checkpoints(tmp_path / "nowhere")
