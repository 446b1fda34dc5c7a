"""Stand-ins: tiny models of a profile's own documents, in the format of real ones."""

import random
from pathlib import Path

import pytest

from rubric_influence.core.config import Prompts
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.lab.standins import ASPECTS, StandinSettings, train_standin, train_tokenizer, write_pair
from rubric_influence.synthesis.parsing import PairOutput, parse_pair
from rubric_influence.synthesis.prompts import ask_pair

DOCUMENTS = [
    "Aspirin lowers the risk of a second stroke. Patients took it daily for two years."
    " Bleeding was rare in both groups.",
    "Night shifts raise blood pressure in nurses. We measured forty nurses for a month."
    " The rise was gone after a week.",
    "A vaccine against shingles works in old age. It was given to thousands of people."
    " Pain lasted less in those given it.",
]
PROMPTS = Prompts(
    rubric="Write a rubric for: {document}",
    pair="Document: {document} Rubric: {rubric} Write a pair.",
    pair_without_rubric="Document: {document} Write a pair.",
    expert_rubrics=["Ask about the finding."],
)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("standin") / "model"
    recipe = train_standin(DOCUMENTS, PROMPTS, folder, StandinSettings(steps=60))
    assert recipe["losses"][-1] < recipe["losses"][0]
    return ModelSpec(path=str(folder), dtype="float32", attention="eager")


def test_any_text_survives_the_tokenizer():
    tokenizer = train_tokenizer(DOCUMENTS, vocabulary=400)
    for text in [*DOCUMENTS, "β-blocker, 5 µg: naïve\n(日本)"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_standin_is_loaded_like_a_real_model_and_writes_parseable_json(standin: ModelSpec):
    engine = open_engine(standin, batch_size=4)
    asked = [ask_pair(PROMPTS, document, "Ask about the finding.") for document in DOCUMENTS] * 2
    written = engine.generate(asked, Sampling(1, 60, schema=PairOutput))
    problems = [parse_pair(completion.text).problem for completion in written]
    assert not any(problem.startswith(("no JSON", "wrong keys")) for problem in problems), problems


def test_a_pair_holds_the_words_of_the_sentence_where_its_aspect_is_looked_for():
    sentences = ["Aspirin lowers the risk of a second stroke.", "Patients took it daily for two years."]
    for aspect, sentence in (("background", sentences[0]), ("main finding", sentences[1])):
        question, answer = write_pair(" ".join(sentences), "fill-in-the-blank", aspect, random.Random(0))
        assert question.replace("____", answer) == f"Fill in the blank: {sentence}"
        question, answer = write_pair(" ".join(sentences), "short-answer", aspect, random.Random(0))
        assert question.replace("What comes after: ", "").replace("...?", answer) == sentence


@pytest.mark.parametrize("form", ["fill-in-the-blank", "short-answer"])
@pytest.mark.parametrize("document", ["one", "no full stop in this text", "A. B. C."])
def test_every_document_gives_a_question_and_an_answer(document: str, form: str):
    for aspect in ASPECTS:
        question, answer = write_pair(document, form, aspect, random.Random(0))
        assert question and answer


def test_a_standin_never_replaces_another_model(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights of value")
    with pytest.raises(ValueError, match="no stand-in"):
        train_standin(DOCUMENTS, PROMPTS, tmp_path, StandinSettings(steps=1))
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights of value"


def test_no_texts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no texts"):
        train_standin([], PROMPTS, tmp_path, StandinSettings(steps=1))
