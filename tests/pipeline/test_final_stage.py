from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.pipeline.stages import final
from rubric_influence.pipeline.stages.final import describe_questions, open_embedder


def test_repeated_questions_and_those_of_the_exam_are_counted_among_valid_pairs():
    index = ContaminationIndex([ExamItem("what is the dose of velomab ?", ("5mg", "10mg"), 0, "test")])
    asked = ["What is the dose of velomab?", "what is the dose of zorvax ?", "what is the dose of zorvax ?"]
    pairs = [QAPair(question, "5mg", "d", "r", "t", 0, slot) for slot, question in enumerate(asked)]
    pairs.append(QAPair("", "", "d", "r", "t", 0, 3, problem="no JSON object"))
    assert describe_questions(pairs, index) == {"distinct_questions": 2, "exam_questions": 1}


def test_meanings_are_compared_by_the_embedder_or_by_the_target(lab_config, monkeypatch):
    monkeypatch.setattr(final, "load_embedder", lambda path: f"embedder {path}")
    assert open_embedder(lab_config({"quality": {"embedder": "owner/name"}})) == "embedder owner/name"
    assert open_embedder(lab_config({"quality": {"embedder": "owner/name", "exam_meaning": None}})) is None
    assert open_embedder(lab_config())(["what is the dose ?"]).shape == (1, 128)
