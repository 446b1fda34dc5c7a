from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.pipeline.stages.final import describe_questions


def test_repeated_questions_and_those_of_the_exam_are_counted_among_valid_pairs():
    index = ContaminationIndex([ExamItem("what is the dose of velomab ?", ("5mg", "10mg"), 0, "test")])
    asked = ["What is the dose of velomab?", "what is the dose of zorvax ?", "what is the dose of zorvax ?"]
    pairs = [QAPair(question, "5mg", "d", "r", "t", 0, slot) for slot, question in enumerate(asked)]
    pairs.append(QAPair("", "", "d", "r", "t", 0, 3, problem="no JSON object"))
    assert describe_questions(pairs, index) == {"distinct_questions": 2, "exam_questions": 1}
