"""Work that several processes share: two, on the CPU, started by accelerate as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file

from rubric_influence.core.files import write_records
from rubric_influence.core.seeds import seed_step
from rubric_influence.influence.moments import load_moments
from rubric_influence.models import processes as distributed
from rubric_influence.models.processes import share_batch
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.pipeline.stages.warmup import warm_up_target
from rubric_influence.rl.rewards import reward_set_influence
from rubric_influence.rl.scores import stack_scores
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.rl.trajectories import read_trajectories, stack_influence
from rubric_influence.training import fine_tuning as sft

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
# Run in place of rubric-influence launch: both processes end as one of them is killed in the third step.
KILLED = """
import os, signal, sys
from accelerate import PartialState
from rubric_influence.cli.main import main
from rubric_influence.rl.rubric_reward import RubricReward

score_pairs = RubricReward.score_pairs

def die(self, rows):
    if rows[0].step == 2 and PartialState().process_index == PROCESS:
        os.kill(os.getpid(), signal.SIGKILL)
    score_pairs(self, rows)

RubricReward.score_pairs = die
sys.exit(main(["launch", "generators"]))
"""


def launch(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a module or script in two processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), *command]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def config(lab_config):
    """Ten pairs make two full batches and one of two; a step is of two documents with four rubrics each."""
    changes = {"warmup": {"batch_size": 4, "fraction": 1.0}, "lora": {"r": 4, "alpha": 8}, "machine": {"workers": 1}}
    return lab_config(changes)


@pytest.fixture(scope="module")
def prepare(config, draw_pairs, tmp_path_factory):
    """A function that makes a project's folder with what the warm-up needs."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        corpus = build_corpus(config.corpus)
        write_records(folder / "data/corpus/documents.jsonl", corpus.documents)
        write_records(folder / "data/corpus/exam.jsonl", corpus.exam)
        write_records(folder / "data/initial/seed-0/pairs.jsonl", draw_pairs(10))
        return folder

    return make


@pytest.fixture(scope="module")
def warmed_up(prepare) -> Path:
    folder = prepare("two")
    result = launch(folder, "-m", "rubric_influence", "launch", "warmup")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def optimised(warmed_up) -> Path:
    result = launch(warmed_up, "-m", "rubric_influence", "launch", "generators")
    assert result.returncode == 0, result.stderr
    return warmed_up


@pytest.mark.distributed
def test_two_processes_fine_tune_as_one_does(warmed_up, prepare, config, monkeypatch):
    alone = prepare("one")
    monkeypatch.chdir(alone)
    log = warm_up_target(config, 0)
    checkpoint = "data/warmup/seed-0/checkpoint-3"
    names = ["adapter_config.json", "adapter_model.safetensors", "moments.safetensors"]
    assert sorted(path.name for path in (warmed_up / checkpoint).iterdir()) == names
    one, two = (load_file(folder / checkpoint / "adapter_model.safetensors") for folder in (alone, warmed_up))
    largest = max(tensor.abs().max() for tensor in one.values())
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-3 * largest
    one, two = (load_moments(folder / checkpoint / "moments.safetensors") for folder in (alone, warmed_up))
    assert (one.step, one.learning_rate) == (two.step, two.learning_rate) == (9, pytest.approx(one.learning_rate))
    for first, second in ((one.exp_avg, two.exp_avg), (one.exp_avg_sq, two.exp_avg_sq)):
        assert max((first[name] - second[name]).norm() / first[name].norm() for name in first) < 1e-3
    # The stage finds the work of two processes done, and has nothing to train.
    monkeypatch.chdir(warmed_up)
    monkeypatch.setattr(sft, "train_adapter", None)
    (found,) = (json.loads(path.read_text()) for path in Path("scratch/warmup").rglob("log.json"))
    steps = [[entry for entry in entries if "loss" in entry] for entries in (log, found)]
    assert [entry["loss"] for entry in steps[1]] == pytest.approx([entry["loss"] for entry in steps[0]], rel=1e-4)
    assert warm_up_target(config, 0, keep=True) == found


@pytest.mark.distributed
def test_two_processes_log_and_reward_every_step_whole(optimised, config, monkeypatch):
    monkeypatch.chdir(optimised)
    rows = read_trajectories(Path("data/generators/seed-0/trajectories.jsonl"))
    assert [row.step for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
    scorer = TargetScorer(config, "data/warmup/seed-0", build_corpus(config.corpus).exam, 0)
    served = scorer.served
    (log,) = (json.loads(path.read_text()) for path in Path("scratch/generators").rglob("log.json"))
    logged = [entry for entry in log if "reward" in entry]
    for step in range(3):
        batch = rows[8 * step : 8 * step + 8]
        # The first process had the first document, the second the second.
        asked = [row.rubric.document_id for row in batch]
        assert asked == [asked[0]] * 4 + [asked[4]] * 4 and asked[0] != asked[4]
        scores, valid_n = stack_influence(batch, 1, scorer.directions)
        rewards, served = reward_set_influence(scores.groups_nk, valid_n, served, config.rl.invalid_penalty)
        assert [row.reward for row in batch] == pytest.approx(rewards.tolist(), abs=1e-6)
        assert logged[step]["reward"] == pytest.approx(rewards.mean().item(), abs=1e-5)
        assert logged[step]["influence"] == pytest.approx(scores.whole_n[valid_n].mean().item(), abs=1e-6)
    scored = [taught for row in rows for taught in row.pairs if not taught.pair.problem]
    influence = stack_scores(scorer([taught.pair for taught in scored]))
    torch.testing.assert_close(influence, torch.tensor([taught.influence for taught in scored]), rtol=0, atol=2e-5)


@pytest.mark.distributed
@pytest.mark.faults
@pytest.mark.parametrize("process", [0, 1])
def test_two_processes_of_which_one_is_killed_go_on_to_the_same_bytes(optimised, prepare, process):
    folder = prepare(f"killed-{process}")
    (folder / "data/warmup").symlink_to(optimised / "data/warmup")
    (folder / "killed.py").write_text(KILLED.replace("PROCESS", str(process)))
    result = launch(folder, "killed.py")
    assert result.returncode != 0 and "SIGKILL" in result.stderr, result.stderr
    assert not (folder / "data/generators").exists()
    (log,) = folder.rglob("trajectories.jsonl")
    assert len(log.read_text().splitlines()) == 16
    result = launch(folder, "-m", "rubric_influence", "launch", "generators")
    assert result.returncode == 0, result.stderr
    for name in ("trajectories.jsonl", "model.safetensors"):
        path = f"data/generators/seed-0/{name}"
        assert (folder / path).read_bytes() == (optimised / path).read_bytes()


# ---------------------------------------------------------------- what needs but one process


@pytest.fixture
def pretend(monkeypatch):
    """A function that makes this process one of several, for what only asks which."""

    def place(processes: int, index: int = 0) -> None:
        state = SimpleNamespace(num_processes=processes, process_index=index, is_main_process=index == 0)
        for module in (distributed, sft):
            monkeypatch.setattr(module, "open_state", lambda: state)

    return place


@pytest.mark.parametrize(
    "processes, batch, micro_batch, expected",
    [(1, 16, None, (16, 1)), (1, 16, 4, (4, 4)), (2, 16, None, (8, 1)), (2, 16, 4, (4, 2)), (8, 16, 4, (2, 1))],
)
def test_a_batch_is_shared_in_parts_of_a_micro_batch_at_most(pretend, processes, batch, micro_batch, expected):
    pretend(processes)
    assert share_batch(batch, micro_batch, "batch_size") == expected


def test_a_batch_that_cannot_be_shared_is_refused_with_its_name_and_size(pretend):
    pretend(3)
    with pytest.raises(ValueError, match=r"warmup.batch_size is 16, which 3 processes cannot share equally; launch a"):
        share_batch(16, None, "warmup.batch_size")
    pretend(2)
    with pytest.raises(ValueError, match=r"micro_batch \(4\) must divide .* which is 6 of 12 with 2 processes"):
        share_batch(12, 4, "batch_size")


def test_a_checkpoint_is_whole_once_every_process_has_written_its_part(pretend, tmp_path):
    for step, written in ((2, 2), (4, 1)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        for process in range(written):
            torch.save({}, folder / f"rng_state_{process}.pth")
    pretend(2)
    assert sft.find_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-4/rng_state_1.pth").write_bytes(
        (tmp_path / "checkpoint-4/rng_state_0.pth").read_bytes()[:9]
    )
    assert sft.find_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    torch.save({}, tmp_path / "checkpoint-4/rng_state_1.pth")
    assert sft.find_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_seeds_of_processes_are_no_other_runs_or_steps():
    steps, seeds = 10_000, range(10)
    drawn = {seed_step(seed, 0, process) for seed in seeds for process in range(512)}
    drawn = sorted(drawn)
    assert len(drawn) == 5120 and min(b - a for a, b in zip(drawn, drawn[1:], strict=False)) > steps


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # else it would start one process on the CPU
    parser = launch_command_parser()
    given = ["--main_process_ip", "127.0.0.1"] if "nodes" in path.stem else []
    arguments = parser.parse_args(
        ["--config_file", str(path), *given, "-m", "rubric_influence", "launch", "generators"]
    )
    arguments, defaults, _ = _validate_launch_command(arguments)
    values = yaml.safe_load(path.read_text())
    assert (arguments.num_processes, arguments.num_machines) == (values["num_processes"], values["num_machines"])
    assert arguments.use_fsdp == ("fsdp" in path.stem) and arguments.multi_gpu == ("fsdp" not in path.stem)
    if arguments.use_fsdp:
        assert arguments.fsdp_version == 2 and not arguments.fsdp_cpu_ram_efficient_loading
