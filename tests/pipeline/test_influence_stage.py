import json

from rubric_influence.core.files import write_records
from rubric_influence.core.paths import EXAM, INITIAL, METRICS, seed_folder
from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.pipeline.stages.influence import compare_initial_spaces


def test_spaces_are_not_compared_where_there_are_too_few_questions_and_the_run_goes_on(
    lab_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_records(EXAM, [ExamItem(f"what is {n} ?", ("a", "b"), 0, "validation") for n in range(11)])
    pairs = [QAPair(f"what is {n} ?", "a", "d", "r", "t", 0, n) for n in range(20)]
    write_records(seed_folder(INITIAL, 0) / "pairs.jsonl", pairs)
    METRICS.mkdir()
    assert compare_initial_spaces(lab_config({"seeds": [0]})) is None
    assert json.loads((METRICS / "spaces.json").read_text()) == {}
