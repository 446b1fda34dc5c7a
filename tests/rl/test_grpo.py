"""Training with the lab's teacher and target; what a rubric earns is in test_rubric_reward.py."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rubric_influence.core.scratch import Workplace
from rubric_influence.engines.open import open_engine
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.rl import guards
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.guards import Ending, measure_dev, read_ending
from rubric_influence.rl.rewards import reward_set_influence
from rubric_influence.rl.rubric_reward import RubricReward
from rubric_influence.rl.scores import stack_scores
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.rl.trajectories import read_trajectories
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


@pytest.fixture(scope="module")
def config(lab_config):
    return lab_config()


@pytest.fixture(scope="module")
def lab(config, draw_pairs, tmp_path_factory):
    """What training needs: documents, the teacher, and the scorer of a target after a short warm-up."""
    folder = tmp_path_factory.mktemp("lab")
    corpus = build_corpus(config.corpus)
    pairs = draw_pairs(16)
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0)
    fine_tune(run, pairs, Workplace(folder / "warmup", folder / "scratch"))
    teacher = open_engine(config.models.teacher, config.synthesis.batch_size)
    return corpus.documents, teacher, TargetScorer(config, folder / "warmup", corpus.exam, 0)


def read_log(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train(config, lab, folder, seed=0):
    return train_rubric_generator(config, *lab, seed, Workplace(folder / "out", folder / "scratch"))


@pytest.fixture(scope="module")
def undisturbed(config, lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    log = train(config, lab, folder)
    assert not (folder / "scratch").exists()
    return folder / "out", log


def test_training_logs_every_step_and_changes_the_generator(undisturbed, config):
    out, log = undisturbed
    steps = [entry for entry in log if "reward" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        assert {"influence", "guard_influence", "valid", "distinct_rubrics", "entropy"} <= entry.keys()
    before = load_model(config.models.rubric_generator).state_dict()
    spec = config.models.rubric_generator.model_copy(update={"path": str(out)})
    after = load_model(spec).state_dict()
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) / 2
    assert load_tokenizer(spec).get_vocab() == load_tokenizer(config.models.rubric_generator).get_vocab()


def test_training_keeps_every_rubric_pair_and_reward(undisturbed, config, lab):
    out, log = undisturbed
    documents, _, scorer = lab
    logged_rows = read_trajectories(out / "trajectories.jsonl")
    assert [row.step for row in logged_rows] == [0] * 8 + [1] * 8 + [2] * 8
    for step in range(3):  # two documents with four rubrics each
        asked = [row.rubric.document_id for row in logged_rows if row.step == step]
        assert asked == [asked[0]] * 4 + [asked[4]] * 4 and asked[0] != asked[4]
    assert {row.rubric.document_id for row in logged_rows} == {document.id for document in documents}  # one epoch
    served = scorer.served
    for step in range(3):
        batch = [row for row in logged_rows if row.step == step]
        valid_n = torch.tensor([any(not taught.pair.problem for taught in row.pairs) for row in batch])
        influence_nk = torch.zeros(8, len(scorer.directions.groups))
        for place, row in enumerate(batch):
            for taught in row.pairs:
                if not taught.pair.problem:
                    influence_nk[place] = torch.tensor(taught.influence[1:-1])
        rewards, served = reward_set_influence(influence_nk, valid_n, served, config.rl.invalid_penalty)
        assert [row.reward for row in batch] == pytest.approx(rewards.tolist())
        logged = [entry for entry in log if entry.get("step") == step + 1][0]
        assert logged["reward"] == pytest.approx(rewards.mean().item(), abs=1e-6)
        assert logged["valid"] == pytest.approx(valid_n.float().mean().item())
    scored = [taught for row in logged_rows for taught in row.pairs if not taught.pair.problem]
    influence = stack_scores(scorer([taught.pair for taught in scored]))
    torch.testing.assert_close(influence, torch.tensor([taught.influence for taught in scored]), rtol=0, atol=2e-5)


def read_run(out):
    return (out / "model.safetensors").read_bytes(), (out / "trajectories.jsonl").read_bytes()


def test_accumulated_micro_batches_are_the_whole_batch(undisturbed, config, lab, tmp_path):
    smaller = config.model_copy(update={"rl": config.rl.model_copy(update={"micro_batch": 4, "steps": 1})})
    documents, teacher, scorer = lab
    log = train_rubric_generator(
        smaller, documents, teacher, scorer, 0, Workplace(tmp_path / "out", tmp_path / "scratch")
    )
    steps, whole = ([entry for entry in found if "reward" in entry] for found in (log, undisturbed[1]))
    assert [entry["step"] for entry in steps] == [1]
    first = [row for row in read_log(undisturbed[0] / "trajectories.jsonl") if row["step"] == 0]
    assert read_log(tmp_path / "out/trajectories.jsonl") == first
    assert steps[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-2)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(undisturbed, config, lab, tmp_path):
    train(config, lab, tmp_path / "same")
    assert read_run(tmp_path / "same/out") == read_run(undisturbed[0])
    train(config, lab, tmp_path / "other", seed=1)
    assert read_run(tmp_path / "other/out")[0] != read_run(undisturbed[0])[0]


@pytest.mark.faults
@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_stops_goes_on_from_its_checkpoint_to_the_same_bytes(
    undisturbed, config, lab, tmp_path, monkeypatch, step
):
    score_pairs = RubricReward.score_pairs

    def stop(self, trajectories):
        score_pairs(self, trajectories)
        if trajectories[0].step == step:
            self.log.open("a", encoding="utf-8").write('{"step": 9, "pairs": [{"que')  # a torn line
            raise RuntimeError("the machine stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RubricReward, "score_pairs", stop)
        with pytest.raises(RuntimeError, match="the machine stopped"):
            train(config, lab, tmp_path)
    trainer = tmp_path / "scratch/trainer"
    assert [path.name for path in trainer.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    (trainer / f"checkpoint-{step + 1}").mkdir()  # killed while writing the next one
    (trainer / f"checkpoint-{step + 1}/config.json").write_text("{", encoding="utf-8")
    log = train(config, lab, tmp_path)
    assert [entry["step"] for entry in log if "reward" in entry] == [1, 2, 3]
    assert read_run(tmp_path / "out") == read_run(undisturbed[0])


def test_an_adapter_is_merged_into_a_model_that_stands_alone(lab_config, lab, tmp_path):
    config = lab_config({"rl": {"steps": 1, "lora": {"r": 4, "alpha": 8}, "learning_rate": 0.01}})
    train(config, lab, tmp_path)
    base = load_file(f"{config.models.rubric_generator.path}/model.safetensors")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed and all("proj" in name for name in changed)


def test_the_checkpoint_that_is_best_by_dev_is_the_generator_that_is_kept(lab_config, draw_pairs, tmp_path):
    config = lab_config({"rl": {"checkpoint": "dev", "save_every": 1, "steps": 3, "learning_rate": 0.02}})
    corpus = build_corpus(config.corpus)
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0)
    fine_tune(run, draw_pairs(16), Workplace(tmp_path / "warmup", tmp_path / "warming"))
    scorer = TargetScorer(config, tmp_path / "warmup", corpus.exam, 0)
    lab = (corpus.documents, open_engine(config.models.teacher, config.synthesis.batch_size), scorer)
    log = train(config, lab, tmp_path)
    # By hand, from the trajectories: the utility along dev of each step's pairs.
    found = [[] for _ in range(3)]
    for row in read_trajectories(tmp_path / "out/trajectories.jsonl"):
        found[row.step] += [taught.influence for taught in row.pairs if not taught.pair.problem]
    steps = [scorer.directions.split_rows(rows) for rows in found]
    utilities = [measure_dev(s, steps[0], scorer.dev_served) if len(s) else float("-inf") for s in steps]
    best = max(range(3), key=utilities.__getitem__) + 1
    assert {"step": best, "kept": f"checkpoint-{best}"} in log
    shorter = config.model_copy(update={"rl": config.rl.model_copy(update={"steps": best})})
    train(shorter, lab, tmp_path / "shorter")
    assert (tmp_path / "shorter/out/model.safetensors").read_bytes() == read_run(tmp_path / "out")[0]


def test_a_run_whose_guard_diverges_ends_there_and_says_so(config, lab, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "find_divergence", lambda windows: "gamed" if len(windows) == 2 else "")
    log = train(config, lab, tmp_path)
    assert [entry["step"] for entry in log if "reward" in entry] == [1, 2]
    assert read_ending(log, config.rl.steps) == Ending(steps=2, planned=3, kept=2, stopped="gamed")
    assert (tmp_path / "out/model.safetensors").is_file()
