"""A task of lm-evaluation-harness on local data, sat by the lab's model."""

import json

import numpy as np
import pytest

from rubric_influence.evaluation.tasks import find_tasks, sit_tasks
from rubric_influence.models.loading import load_model, load_tokenizer

TASK = """task: doses
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"what is the dose of drug {n} ?", "options": ["5mg", "10mg", "red"], "answer": n % 3}
            for n in range(8)]  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "doses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks/doses.yaml").write_text(TASK.format(data=tmp_path / "doses.jsonl"))
    return tmp_path / "tasks"


def test_a_local_task_gives_a_score_a_question_for_each_metric(folder, lab_config):
    spec = lab_config().models.target
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    scores = sit_tasks(model, tokenizer, find_tasks(["doses"], str(folder)), ["doses"], batch_size=4, limit=6)
    assert list(scores) == ["doses: acc", "doses: acc_norm"]
    for metric in scores.values():
        assert metric.values.shape == (6,) and np.isin(metric.values, (0, 1)).all() and not metric.losses


def test_a_name_that_no_task_has_is_told(folder):
    with pytest.raises(ValueError, match=r"lm-evaluation-harness has no tasks \['hellaswagg'\]; `lm_eval ls tasks`"):
        find_tasks(["hellaswagg", "doses"], str(folder))
    with pytest.raises(ValueError, match="evaluation.tasks_folder is 'nowhere', which is no folder"):
        find_tasks(["doses"], "nowhere")
