"""Scoring, RL and fine-tuning, killed again and again: what they leave in the end is what an undisturbed run leaves.

Half of the kills come just before a file is opened to be written, renamed, cut or removed, where a torn state would
be left; the n-th such moment, n drawn by the seed. The others come after a time drawn by the seed.
"""

import json
import os
import random
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from rubric_influence.cli.main import main
from rubric_influence.core.config import Config
from rubric_influence.core.scratch import Workplace, deliver, discard
from rubric_influence.engines.open import open_engine
from rubric_influence.influence import score_corpus as scoring_corpus
from rubric_influence.influence.moments import load_moments
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune

KILLS = 5  # of each kind of work, at least
CHANGES = {"os.rename", "os.truncate", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile"}
# Children are forked from a process that has imported all this, and done nothing else.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["rubric_influence.rl.grpo", "rubric_influence.influence.score_corpus"])


def is_change(event: str, arguments: tuple, folder: str) -> bool:
    """Whether an audit event changes files in the folder."""
    if event == "open":
        writes = isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        return bool(writes) and str(arguments[0]).startswith(folder)
    return event in CHANGES and str(arguments[0]).startswith(folder)


def run_child(work, folder: Path, inputs: Path, moment: int) -> None:
    """Do the work; die just before the `moment`-th change of files, or, with 0, never and note how many there were."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if is_change(event, arguments, str(folder)):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    folder.mkdir(exist_ok=True)
    streams = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(streams, 1)
    os.dup2(streams, 2)
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    work(folder, inputs)
    folder.with_suffix(".changes").write_text(str(seen))


def start(work, folder: Path, inputs: Path, moment: int = 0):
    process = SERVER.Process(target=run_child, args=(work, folder, inputs, moment))
    process.start()
    return process


def finish(process, folder: Path) -> bool:
    """Whether the process was killed; any other end than its own is a failure."""
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), folder.with_suffix(".log").read_text()
    return process.exitcode != 0


def read_config(inputs: Path) -> Config:
    return Config.model_validate_json((inputs / "config.json").read_text())


def tune(folder: Path, inputs: Path) -> None:
    config = read_config(inputs)
    rows = [scoring_corpus.Sample(**row) for row in map(json.loads, (inputs / "samples.jsonl").open())]
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0, checkpoints=2)
    fine_tune(run, rows[:12], Workplace(folder / "out", folder / "scratch"))


def optimise(folder: Path, inputs: Path) -> None:
    config = read_config(inputs)
    lab = build_corpus(config.corpus)
    scorer = TargetScorer(config, inputs / "warmup", lab.exam, 0)
    teacher = open_engine(config.models.teacher, config.synthesis.batch_size)
    place = Workplace(folder / "out", folder / "scratch")
    train_rubric_generator(config, lab.documents, teacher, scorer, 0, place)


def score(folder: Path, inputs: Path) -> None:
    scoring_corpus.BATCHES_PER_PART = 2
    command = ["--model", read_config(inputs).models.target.path, "--checkpoint", str(inputs / "warmup/checkpoint-3")]
    command += ["--validation", str(inputs / "validation.jsonl"), "--samples", str(inputs / "samples.jsonl")]
    assert main(["score", *command, "--batch-tokens", "128", "--out", str(folder / "out/scores.parquet")]) == 0


def read_files(out: Path) -> dict:
    """The bytes of every file; of moments, whose file has its metadata in any order, every tensor's."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == "moments.safetensors":
            moments = load_moments(path)
            states = (sorted(state.items()) for state in (moments.exp_avg, moments.exp_avg_sq))
            found[name] = [[(key, tensor.numpy().tobytes()) for key, tensor in state] for state in states]
            found[name] += [moments.step, moments.betas, moments.eps, moments.learning_rate]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def inputs(lab_config, draw_pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    config = lab_config({"warmup": {"batch_size": 4}, "lora": {"r": 4, "alpha": 8}})
    (folder / "config.json").write_text(config.model_dump_json())
    for name, count, seed in (("samples", 100, 1), ("validation", 6, 2)):
        pairs = draw_pairs(count, seed)
        rows = [{"id": str(i), "question": p.question, "answer": p.answer} for i, p in enumerate(pairs)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not finish(start(tune, folder / "first", folder), folder / "first")
    (folder / "first/out").rename(folder / "warmup")
    return folder


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("work", [tune, score, optimise])
def test_a_run_that_is_killed_again_and_again_leaves_the_bytes_of_an_undisturbed_one(work, inputs, tmp_path):
    whole = tmp_path / "whole"
    started = time.monotonic()
    assert not finish(start(work, whole, inputs), whole)
    seconds, changes = time.monotonic() - started, int(whole.with_suffix(".changes").read_text())
    expected = read_files(whole / "out")
    rng, kills, runs = random.Random(work.__name__), 0, 0
    while kills < KILLS:
        folder, runs, alive = tmp_path / f"run-{runs}", runs + 1, True
        while alive:
            if kills >= KILLS:
                process = start(work, folder, inputs)
            elif kills % 2:
                process = start(work, folder, inputs)
                process.join(rng.uniform(0.2, 0.9) * seconds)
                process.kill()  # nothing, where it has ended
            else:
                process = start(work, folder, inputs, rng.randint(1, changes))
            alive = finish(process, folder)
            kills += alive
        assert read_files(folder / "out") == expected
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def deliver_once(folder: Path, inputs: Path) -> None:
    """What ends a stage: the finished folder is delivered and the work let go."""
    if (folder / "scratch").exists():
        deliver(folder / "scratch/finished", folder / "out")
        discard(folder / "scratch")


@pytest.mark.faults
def test_a_delivery_can_be_killed_before_every_change_of_a_file(tmp_path):
    def prepare(name: str) -> Path:
        for place, text in (("scratch/finished", "new"), ("out", "old")):
            (tmp_path / name / place / "deep").mkdir(parents=True)
            for file in ("a", "deep/b"):
                (tmp_path / name / place / file).write_text(text)
        return tmp_path / name

    whole = prepare("whole")
    assert not finish(start(deliver_once, whole, tmp_path), whole)
    changes = int(whole.with_suffix(".changes").read_text())
    assert changes > 10
    for moment in range(1, changes + 1):
        folder = prepare(f"run-{moment}")
        assert finish(start(deliver_once, folder, tmp_path, moment), folder)
        if (folder / "out").exists():  # all old or all new
            assert len(set(read_files(folder / "out").values())) == 1
        assert not finish(start(deliver_once, folder, tmp_path), folder)
        assert read_files(folder / "out") == {"a": b"new", "deep/b": b"new"}
        assert not (folder / "scratch").exists()
