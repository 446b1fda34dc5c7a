"""Plans: figures against hand-computed ones, and parameters that do not go together."""

import math
from pathlib import Path

import pytest

from rubric_influence.cli.main import main
from rubric_influence.core.profiles import load_config, merge
from rubric_influence.pipeline.plan import make_plan

ROOT = Path(__file__).parents[2]
# 2 seeds, 10 documents, 3 initial and 5 final pairs each; a rubric is asked for with 200 + 32 tokens, a pair with
# 200 + 32 + 64.
SMALL = {
    "seeds": [0, 1],
    "corpus": {"documents": 10, "dev_documents": 2, "validation_entities": 3, "guard_entities": 3},
    "budget": {"initial_pairs": 3, "final_pairs": 5},
    "synthesis": {"max_prompt_tokens": 200, "max_rubric_tokens": 32, "max_pair_tokens": 64},
    "warmup": {"fraction": 0.5, "epochs": 3, "batch_size": 4, "max_tokens": 128, "checkpoints": 2},
    "influence": {"clusters": 6},
    "gate": {"sets": 8, "set_size": 5, "epochs": 2, "batch_size": 3},
    "rl": {"steps": 7, "documents_per_step": 4, "group_size": 3, "pairs_per_rubric": 2},
    "finetuning": {"epochs": 2, "batch_size": 16, "max_tokens": 100},
}


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch):
    """A function from changes to the small lab's profile."""
    monkeypatch.chdir(ROOT)
    return lambda changes=None: load_config("params.yaml", merge(SMALL, changes or {}))


def test_figures_are_those_counted_by_hand(configure):
    stages = make_plan(configure()).stages
    assert stages["initial"] == dict(rubrics=60, pairs=60, prompts=120, tokens=2 * 30 * (232 + 296))
    # Half of 30 pairs in batches of 4 are 4 steps an epoch.
    assert stages["warmup"] == dict(pairs=30, steps=2 * 4 * 3, batch=4, tokens=2 * 15 * 3 * 128)
    assert stages["influence"] == dict(scored=60, tokens=2 * 30 * 128 * 2)
    # 8 sets of 5 pairs, each trained on twice in batches of 3 and 2, then asked the guard's 3 x 4 x 2 questions.
    tokens = 2 * 8 * 128 * (5 * 2 + 24)
    assert stages["gate"] == dict(pairs=80, prompts=2 * 8 * 24, steps=2 * 8 * 2 * 2, batch=3, tokens=tokens)
    # 7 steps of 4 x 3 rubrics, each trained on once more, and 2 pairs for each, scored at 2 checkpoints.
    tokens = 2 * (84 * 232 + 168 * 296 + 84 * 232 + 168 * 128 * 2)
    generators = dict(rubrics=168, pairs=336, prompts=504, scored=336, steps=14, batch=12, tokens=tokens)
    assert stages["generators"] == generators
    assert stages["final: no_rubric"] == dict(rubrics=0, pairs=100, prompts=100, tokens=100 * 296)
    assert stages["final: expert_rubric"] == dict(rubrics=100, pairs=100, prompts=100, tokens=100 * 296)
    assert stages["final: optimised"]["prompts"] == 200
    assert stages["final: influence_filtered"]["scored"] == 200
    assert stages["finetuning: initial"] == dict(pairs=100, steps=2 * 4 * 2, batch=16, tokens=100 * 2 * 100)
    # 8 test entities, 4 topics, 2 wordings; 6 arms of 2 seeds and the target as it is.
    assert stages["evaluation"] == dict(prompts=8 * 4 * 2 * 13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"influence": {"clusters": 25}}, r"influence.clusters \(25\) exceeds the 24 validation questions"),
        ({"rl": {"documents_per_step": 11}}, r"rl.documents_per_step \(11\) exceeds the 10 documents"),
        ({"gate": {"set_size": 8}}, r"gate.set_size \(8\) is over half of the 15 initial pairs"),
        ({"warmup": {"checkpoints": 4}}, r"warmup.checkpoints \(4\) exceeds warmup.epochs \(3\)"),
        ({"rl": {"vllm": "colocate"}, "synthesis": {"constrained": True}}, "rl.vllm is 'colocate'"),
        ({"synthesis": {"max_prompt_tokens": 10_000}}, r"models.rubric_generator: .* exceed the 512 positions"),
        ({"warmup": {"max_tokens": 64}}, "warmup.max_tokens is 64"),
        ({"quality": {"embedder": "data/lab/models/medicine-qwen3"}}, "is no model of sentence-transformers"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(configure, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_plan(configure(changes))


def test_parameters_that_a_trainer_refuses_name_their_section(configure):
    config = configure()
    alone = config.rl.model_copy(update={"group_size": 1})  # past the profile's own check
    with pytest.raises(ValueError, match="^rl: its trainer refuses these parameters: .*at least 2 generations"):
        make_plan(config.model_copy(update={"rl": alone}))


def test_without_files_and_limits_sizes_are_unknown_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    changes = {"corpus": {"max_documents": None}, "quality": {"embedder": "owner/name"}}
    config = load_config(ROOT / "conf/paper.yaml", changes)
    monkeypatch.chdir(tmp_path)
    made = make_plan(config)
    assert math.isnan(made.stages["initial"]["pairs"])
    assert made.stages["generators"]["rubrics"] == 78 * 256 * 5
    table = made.tabulate()
    assert table.loc["initial", "pairs"] == "unknown" and table.loc["initial", "steps"] == ""
    assert table.loc["generators", "batch"] == "1,280"
    assert len(made.unchecked) == 6  # documents, exam, three models and the embedder


def test_an_embedder_that_is_not_there_yet_is_unchecked_as_a_model_is(configure):
    made = make_plan(configure({"quality": {"embedder": "data/models/no/such"}}))
    assert [line for line in made.unchecked if line.startswith("quality.embedder: no model folder at data/models/no")]


def test_the_command_prints_the_plan_or_what_is_wrong(configure, capsys: pytest.CaptureFixture):
    configure()
    assert main(["plan", "conf/history-lab.yaml"]) == 0
    assert "finetuning: optimised" in capsys.readouterr().out
    assert main(["plan", "conf/none.yaml"]) == 1
    assert "no profile at conf/none.yaml" in capsys.readouterr().err


def test_what_is_left_out_of_the_documents_is_in_the_plan(tmp_path: Path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.csv").write_text("text\n" + "".join(f"drug {n} thins blood\n" for n in range(300)))
    (tmp_path / "documents" / "b.pptx").touch()
    rows = [f"q {n}?,yes,no,A" for n in range(20)]
    (tmp_path / "exam.csv").write_text("\n".join(["question,A,B,answer", *rows]))
    files = {"documents": str(tmp_path / "documents"), "exam": str(tmp_path / "exam.csv"), "exam_format": "table"}
    made = make_plan(load_config(ROOT / "conf/paper.yaml", {"corpus": files}))
    assert "left out of the documents: 1 x of a format that is not read (.pptx)" in made.describe().splitlines()
