from rubric_influence.core.files import write_records
from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.pipeline.sets import read_pairs, read_rubrics


def test_what_is_read_of_a_set_are_its_valid_rubrics_and_pairs(tmp_path):
    good, bad = Rubric("ask for the dose", "d", "model", 0, 0), Rubric("", "d", "model", 0, 1, "no JSON object", "{")
    kept = QAPair("Which dose?", "5 mg", "d", good.id, "teacher", 0, 0)
    removed = QAPair("Which dose?", "5 mg", "d", good.id, "teacher", 0, 1, "removed: near_duplicate: of another")
    write_records(tmp_path / "initial/seed-3/rubrics.jsonl", [good, bad])
    write_records(tmp_path / "initial/seed-3/pairs.jsonl", [kept, removed])
    assert read_rubrics(tmp_path / "initial", 3) == [good]
    assert read_pairs(tmp_path / "initial", 3) == [kept]
