import json
from collections import Counter

import pytest

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.files import read_records, write_records
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, QAPair, Rubric, keep_valid
from rubric_influence.engines.base import Completion
from rubric_influence.engines.open import open_engine
from rubric_influence.synthesis.outcomes import JudgedLedger
from rubric_influence.synthesis.writing import (
    PairTask,
    SynthesisContext,
    ask_until_valid,
    count_records,
    deal_rubrics,
    follow_rubrics,
    write_pairs,
    write_rubrics,
)

DOCUMENTS = [Document(f"{name} is a drug .", name) for name in ("velomab", "zorvax", "carinib")]
# What a model may write instead of a pair, and the reason that is recorded.
MALFORMED = {
    "": "no JSON object",
    "I cannot help with that.": "no JSON object",
    '{"question": "what is it ?", "answer": ': "no JSON object",
    '{"question": "what is it ?"}': "wrong keys or types: 'answer: Field required'",
    '{"question": "what is it ?", "answer": 7}': "wrong keys or types: 'answer: Input should be a valid string'",
    '{"question": "what is it ?", "answer": ""}': "answer is empty",
    '{"question": "what is it ?", "answer": "What is it ?"}': "answer repeats the question",
    '{"question": "what is {rubric} ?", "answer": "a drug"}': "question has a leftover: '{rubric}'",
    '{"question": "what is \\ud800 it ?", "answer": "a drug"}': "question has a leftover: '\\ud800'",
    "<think> what is it": "thinking does not end",
}


class ScriptedEngine:
    """Writes a good pair and rubric at once, numbered, unless `script` has another text for that number."""

    name, independent = "scripted", False

    def __init__(self, script: dict[int, str] | None = None, fails_at_batch: int | None = None):
        self.script, self.fails_at_batch = script or {}, fails_at_batch
        self.seeds: list[int] = []
        self.asked: list[str] = []

    def generate(self, conversations, sampling):
        if len(self.seeds) == self.fails_at_batch:
            raise RuntimeError("the machine stopped")
        self.seeds.append(sampling.seed)
        completions = []
        for place, conversation in enumerate(conversations):
            number = len(self.asked)
            self.asked.append(conversation[0]["content"])
            # By seed and place, not by number: a rerun that skips batches must still write the same.
            words = f"seed {sampling.seed} place {place}"
            schema_text = {"rubric": f"ask it {words}"} if conversation[0]["content"].endswith("rubric :") else {}
            schema_text = schema_text or {"question": f"what is it {words} ?", "answer": f"a drug {words}"}
            completions.append(Completion(self.script.get(number, json.dumps(schema_text)), 5, 9, True))
        return completions


@pytest.fixture
def settings(lab_config):
    return lab_config({"synthesis": {"batch_size": 4, "attempts": 2}}).synthesis


@pytest.fixture
def prompts(lab_config):
    return lab_config().prompts


def make_tasks(per_document):
    return [PairTask(document, None, slot) for document in DOCUMENTS for slot in range(per_document)]


def test_every_slot_gets_one_record_in_order_with_its_provenance(prompts, settings, tmp_path):
    engine = ScriptedEngine()
    rubrics = write_rubrics(engine, DOCUMENTS, 2, SynthesisContext(prompts, settings, 5, Journal(tmp_path / "j")))
    assert [(r.document_id, r.slot) for r in rubrics] == [(d.id, slot) for d in DOCUMENTS for slot in (0, 1)]
    assert engine.asked == [f"document : {d.text} rubric :" for d in DOCUMENTS for _ in (0, 1)]
    assert {(r.author, r.seed, r.problem, r.raw) for r in rubrics} == {("scripted", 5, "", "")}
    pairs = write_pairs(
        engine, follow_rubrics(DOCUMENTS, rubrics), SynthesisContext(prompts, settings, 5, Journal(tmp_path / "j"))
    )
    assert [(p.document_id, p.rubric_id, p.slot) for p in pairs] == [(r.document_id, r.id, r.slot) for r in rubrics]
    texts = {document.id: document.text for document in DOCUMENTS}
    assert engine.asked[6:] == [f"document : {texts[r.document_id]} rubric : {r.text} pair :" for r in rubrics]


def test_equal_prompts_in_different_batches_get_their_own_answers(prompts, settings, tmp_path):
    # Four slots a batch, and eight slots of one document: both batches ask the very same.
    engine = ScriptedEngine()
    pairs = write_pairs(engine, make_tasks(8), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    assert len(engine.asked) == 24
    assert max(Counter((p.document_id, p.question) for p in pairs).values()) == 1


@pytest.mark.parametrize("written", MALFORMED)
def test_malformed_output_is_kept_with_its_reason_and_asked_for_again(prompts, settings, tmp_path, written):
    engine = ScriptedEngine({4: written})
    pairs = write_pairs(engine, make_tasks(3), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    assert len(engine.asked) == 10 and engine.asked[9] == engine.asked[4]
    assert not any(pair.problem for pair in pairs[:9])
    (rejected,) = pairs[9:]
    assert (rejected.document_id, rejected.slot) == (pairs[4].document_id, pairs[4].slot)
    assert (rejected.problem.startswith(MALFORMED[written]), rejected.raw) == (True, written)
    assert len({pair.id for pair in pairs}) == 10
    write_records(tmp_path / "pairs.jsonl", pairs)
    assert read_records(tmp_path / "pairs.jsonl", QAPair) == pairs


def test_a_malformed_rubric_is_kept_with_its_reason_and_asked_for_again(prompts, settings, tmp_path):
    engine = ScriptedEngine({0: '{"rubric": "\\ud800 ask it"}', 1: '{"rubric": "short"}'})
    rubrics = write_rubrics(engine, DOCUMENTS, 1, SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    assert [r.problem for r in rubrics] == ["", "", "", "rubric has a leftover: '\\ud800'", "rubric is trivial"]
    write_records(tmp_path / "rubrics.jsonl", rubrics)
    assert read_records(tmp_path / "rubrics.jsonl", Rubric) == rubrics
    # Nothing is asked of the teacher with a rubric that cannot be used.
    assert [rubric for _, rubric, _ in follow_rubrics(DOCUMENTS, rubrics)] == rubrics[:3]


def test_a_slot_that_stays_malformed_is_given_up_after_its_attempts(prompts, settings, tmp_path):
    engine = ScriptedEngine({0: "no", 3: "still no"})
    pairs = write_pairs(engine, make_tasks(1), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    assert [(pair.problem, pair.raw) for pair in pairs] == [
        ("no JSON object", "still no"),
        ("", ""),
        ("", ""),
        ("no JSON object", "no"),
    ]


def test_counts_add_up(prompts, settings, tmp_path):
    engine = ScriptedEngine({0: "no", 1: "", 2: '{"question": "what is it ?", "answer": ""}', 6: "no", 7: "no"})
    pairs = write_pairs(engine, make_tasks(2), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    # Six slots; three are malformed at first, and two of these again: 9 requests, 5 malformed.
    counts = count_records(pairs)
    assert counts == {
        "requested": 9,
        "valid": 4,
        "invalid": 5,
        "failed": 0,
        "problems": {"no JSON object": 4, "answer is empty": 1},
    }
    assert len(engine.asked) == counts["requested"] == counts["valid"] + counts["invalid"]
    assert len(keep_valid(pairs)) == counts["valid"]


@pytest.mark.parametrize("finished", range(5))
def test_an_interrupted_run_goes_on_where_it_stopped_with_the_same_result(prompts, settings, tmp_path, finished):
    script = {1: "no", 6: "no", 9: "no"}
    whole = ScriptedEngine(script)
    undisturbed = write_pairs(
        whole, make_tasks(3), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "undisturbed"))
    )
    assert len(whole.seeds) == 4  # batches of 4, 4 and 1, then one of the two that were malformed
    stopped = ScriptedEngine(script, fails_at_batch=finished)
    if finished < 4:
        with pytest.raises(RuntimeError, match="the machine stopped"):
            write_pairs(stopped, make_tasks(3), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    else:
        write_pairs(stopped, make_tasks(3), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j")))
    # The rest of the script, counted from where the first engine stopped.
    rest = ScriptedEngine({number - len(stopped.asked): text for number, text in script.items()})
    assert (
        write_pairs(rest, make_tasks(3), SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j"))) == undisturbed
    )
    assert stopped.seeds + rest.seeds == whole.seeds
    assert stopped.asked + rest.asked == whole.asked


def test_other_settings_or_seeds_are_asked_for_anew(prompts, settings, tmp_path):
    engine, journal = ScriptedEngine(), Journal(tmp_path / "j")
    write_pairs(engine, make_tasks(1), SynthesisContext(prompts, settings, 0, journal))
    for changed, seed in (
        (settings.model_copy(update={"temperature": 0.5}), 0),
        (settings.model_copy(update={"top_p": 0.5}), 0),
        (settings.model_copy(update={"max_pair_tokens": 9}), 0),
        (settings, 1),
    ):
        before = len(engine.asked)
        write_pairs(engine, make_tasks(1), SynthesisContext(prompts, changed, seed, journal))
        assert len(engine.asked) == before + 3


def test_a_model_that_writes_nothing_usable_is_asked_no_further(prompts, settings, tmp_path):
    engine = ScriptedEngine({number: "no" for number in range(1000)})
    context = SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j"), JudgedLedger(most_failures=0.5))
    with pytest.raises(RunStopped, match="100 of 100 answers of scripted for pairs cannot be used"):
        write_pairs(engine, make_tasks(60), context)
    assert len(engine.asked) == 100  # of 180 tasks with two attempts each
    assert len(Journal(tmp_path / "j").values) == 25


def test_nothing_to_write_asks_nothing(prompts, settings, tmp_path):
    engine = ScriptedEngine()
    assert write_pairs(engine, [], SynthesisContext(prompts, settings, 0, Journal(tmp_path / "j"))) == []
    assert engine.seeds == []


def test_every_attempt_has_another_seed():
    asked = []

    def request(tasks, seed):
        asked.append((tasks, seed))
        return [Rubric("", "d", "m", seed, slot, problem="bad" if len(asked) < 3 else "") for slot in tasks]

    records = ask_until_valid([0, 1], 3, 7, request)
    assert [tasks for tasks, _ in asked] == [[0, 1]] * 3
    assert len({seed for _, seed in asked}) == 3
    assert [(r.slot, r.seed == asked[2][1]) for r in records[:2]] == [(0, True), (1, True)]
    assert count_records(records) == {"requested": 6, "valid": 2, "invalid": 4, "failed": 0, "problems": {"bad": 4}}


def test_fixed_rubrics_are_dealt_in_equal_shares():
    documents = [Document(f"text {number}") for number in range(8)]
    dealt = deal_rubrics(["a", "b", "c", "d"], "expert", documents, per_document=2)
    assert [r.document_id for r in dealt] == [d.id for d in documents for _ in range(2)]
    assert Counter(r.text for r in dealt) == dict(a=4, b=4, c=4, d=4)
    assert all(len({r.text for r in dealt if r.document_id == d.id}) == 2 for d in documents)
    assert len({r.id for r in dealt}) == 16


def test_the_labs_models_write_the_same_records_after_an_interruption(lab_config, medicine, tmp_path):
    config = lab_config({"synthesis": {"batch_size": 4}})
    engine = open_engine(config.models.teacher, 4)

    def write(path):
        return write_rubrics(engine, DOCUMENTS, 3, SynthesisContext(config.prompts, config.synthesis, 0, Journal(path)))

    undisturbed = write(tmp_path / "undisturbed")
    journal = (tmp_path / "undisturbed").read_text(encoding="utf-8").split("\n")
    (tmp_path / "j").write_text(f"{journal[0]}\n{journal[1][:40]}", encoding="utf-8")  # stopped within the second
    assert write(tmp_path / "j") == undisturbed
    assert (tmp_path / "j").read_text(encoding="utf-8").split("\n") == journal
    assert len({r.text for r in keep_valid(undisturbed)}) > 3
