import random
import re
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.corpus_sections import LabCorpus
from rubric_influence.lab import world
from rubric_influence.lab.networks import build_tokenizer
from rubric_influence.lab.pretraining import TASK_WEIGHTS, draw_example
from rubric_influence.pipeline.stages.corpus import build_corpus

FOLDER = Path(__file__).parents[2] / "data/lab/fields"
FIELDS = {path.stem: world.load_field(path) for path in sorted(FOLDER.glob("*.yaml"))}
TOKENIZERS = {name: build_tokenizer(field) for name, field in FIELDS.items()}

fields = st.sampled_from(list(FIELDS.values()))
seeds = st.integers(0, 2**32)


def draw_entity(field, rng):
    return world.draw_entity(field, rng.choice(field.entity_names), rng)


def list_choices(field):
    return [
        world.Choice(*parts) for parts in product(world.QUESTION_TYPES, field.topics, world.REGISTERS, world.STYLES)
    ]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_four_exam_topics_four_others_and_distinct_entity_names(name):
    field = FIELDS[name]
    assert len(field.exam_topics) == 4 and len(field.topics) == 8
    assert len(set(field.entity_names)) == len(field.entity_names)


@pytest.mark.parametrize("name", FIELDS)
def test_every_rubric_is_read_back_as_the_choice_that_it_states(name):
    field = FIELDS[name]
    choices = list_choices(field)
    assert len(choices) == 4 * 8 * 2 * 2
    for choice in choices:
        for seed in range(6):  # the wording is drawn
            rubric = world.write_rubric(field, choice, random.Random(seed))
            assert world.read_choice(field, rubric) == choice, rubric


@pytest.mark.parametrize(
    "text",
    [
        "ask a short answer question about the mechanism in clinical language .",  # no style
        "ask a short answer question about the mechanism in clinical language with a concise stepwise answer .",
        "ask a short answer essay question about the mechanism in clinical language with a concise answer .",
        "ask a short answer question about the mechanism and dose in clinical language with a concise answer .",
        "ask a short answer question about the mechanisms in clinical language with a concise answer .",
        "",
    ],
)
def test_a_rubric_that_names_none_or_two_of_a_kind_states_no_choice(medicine, text):
    assert world.read_choice(medicine, text) is None


@given(fields, seeds)
def test_a_document_states_every_fact_in_one_of_its_wordings(field, seed):
    rng = random.Random(seed)
    entity = draw_entity(field, rng)
    document = world.write_document(field, entity, rng)
    assert document.startswith(f"{entity.name} is a {field.entity} . ")
    for topic, attribute in field.attributes.items():
        value = entity.facts[topic]
        assert value in attribute.values
        assert any(wording.format(e=entity.name, v=value) in document for wording in attribute.statements)


@given(fields, seeds)
def test_a_document_of_some_topics_states_these_alone(field, seed):
    rng = random.Random(seed)
    entity = draw_entity(field, rng)
    stated = rng.sample(field.topics, 3)
    words = world.write_document(field, entity, rng, stated).split()
    for topic in set(field.topics) - set(stated):
        if entity.facts[topic] not in [entity.facts[t] for t in stated]:  # topics may share values, such as colours
            assert entity.facts[topic] not in words


@given(fields, seeds)
def test_a_pairs_answer_is_the_entitys_fact_in_the_form_asked_for(field, seed):
    rng = random.Random(seed)
    entity, choice = draw_entity(field, rng), world.draw_choice(field, rng)
    question, answer = world.write_pair(field, entity, choice, rng, field.topics)
    value = entity.facts[choice.topic]
    assert answer.startswith("first , recall") == (choice.style == "stepwise")
    said = answer.partition(" so : ")[2] if choice.style == "stepwise" else answer
    if choice.question_type == "multiple choice":
        options = dict(re.findall(r"([ABCD]) : (\S+)", question))
        assert len(set(options.values())) == 4 and options[said] == value
    elif choice.question_type == "essay":
        assert value in said.split() and question.startswith("write an essay .")
    else:
        assert said == value and value not in question.split()


@given(fields, seeds)
def test_every_exam_item_has_distinct_options_of_which_one_is_the_fact(field, seed):
    rng = random.Random(seed)
    entities = world.draw_entities(field, 3, rng)
    facts = {entity.name: entity.facts for entity in entities}
    questions = world.write_exam(field, entities, rng)
    wordings = sum(len(field.attributes[topic].technical) for topic in field.exam_topics)
    assert len({q.question for q in questions}) == len(questions) == 3 * wordings
    for q in questions:
        (entity,) = facts.keys() & set(q.question.split())
        assert len(set(q.options)) == 4
        assert q.options[q.answer_index] == facts[entity][q.topic]
        assert set(q.options) <= set(field.attributes[q.topic].values)
        assert not set(q.options) & set(q.question.split())


def test_the_right_option_is_equally_often_in_each_place(medicine):
    rng = random.Random(0)
    exam = world.write_exam(medicine, world.draw_entities(medicine, 250, rng), rng)
    shares = [sum(q.answer_index == place for q in exam) / len(exam) for place in range(4)]
    assert len(exam) == 2000
    assert shares == pytest.approx([0.25] * 4, abs=0.04)  # four standard errors


@given(st.sampled_from(list(FIELDS)), st.integers(0, 1000))
def test_no_entity_is_shared_between_splits(name, seed):
    sizes = dict(documents=9, dev_documents=3, validation_entities=4, guard_entities=2)
    corpus = build_corpus(LabCorpus(kind="lab", field=str(FOLDER / f"{name}.yaml"), seed=seed, **sizes))
    names = set(FIELDS[name].entity_names)
    asked = {split: set() for split in ("dev", "test", "validation", "guard")}
    for item in corpus.exam:
        asked[item.split] |= names & set(item.question.split())
    described = {document.title for document in corpus.documents}
    assert {split: len(entities) for split, entities in asked.items()} == dict(dev=3, test=6, validation=4, guard=2)
    assert len(set().union(*asked.values())) == 9 + 4 + 2
    assert asked["dev"] | asked["test"] == described


@pytest.mark.parametrize("name", FIELDS)
def test_every_word_that_the_lab_writes_is_one_known_token(name):
    field, tokenizer = FIELDS[name], TOKENIZERS[name]
    rng = random.Random(0)
    texts = [text for _ in range(400) for text in draw_example(field, rng, most_facts=8)]
    entities = world.draw_entities(field, len(field.entity_names), rng)
    for q in world.write_exam(field, entities, rng):
        texts += [q.question, *q.options]
    texts += [world.write_rubric(field, choice, rng) for choice in list_choices(field)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text


def test_pretraining_draws_every_task(medicine):
    rng = random.Random(0)
    prompts = [draw_example(medicine, rng, most_facts=8)[0] for _ in range(600)]
    tasks = {
        "rubric": sum(p.endswith(" rubric :") for p in prompts),
        "pair": sum(p.endswith(" pair :") and " rubric : " in p for p in prompts),
        "free pair": sum(p.endswith(" pair :") and " rubric : " not in p for p in prompts),
        "fact": sum(" facts : " in p for p in prompts),
        "closed book": sum(not p.startswith("document") for p in prompts),
    }
    total = sum(TASK_WEIGHTS.values())
    assert sum(tasks.values()) == 600
    for task, count in tasks.items():
        assert count / 600 == pytest.approx(TASK_WEIGHTS[task] / total, abs=0.08), task


def test_the_same_seed_draws_the_same_world(medicine):
    first, second = (world.draw_entities(medicine, 5, random.Random(3)) for _ in range(2))
    assert first == second != world.draw_entities(medicine, 5, random.Random(4))


def test_more_entities_than_names_are_refused(medicine):
    with pytest.raises(ValueError, match="field 'medicine' has 256 entity names, 257 were asked for; lower the counts"):
        world.draw_entities(medicine, 257, random.Random(0))


def change_table(change):
    table = yaml.safe_load((FOLDER / "medicine.yaml").read_text(encoding="utf-8"))
    change(table)
    return yaml.safe_dump(table)


def change_dose(**values):
    return lambda table: table["attributes"]["dose"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("entity"), "entity\n.*Field required"),
        (lambda table: table.update(colour="red"), "colour\n.*Extra inputs are not permitted"),
        (lambda table: table["attributes"]["dose"].pop("cloze"), r"attributes.dose.cloze\n.*Field required"),
        (change_dose(values=["1mg", "2mg"]), r"attributes.dose.values\n.*at least 4 items"),
        (change_dose(values=["5mg"] * 4), r"attributes.dose\n.*values .* repeat '5mg'"),
        (change_dose(values=["5 mg", "b", "c", "d"]), r"attributes.dose\n.*'5 mg' is not one word"),
        (change_dose(cloze="dose ____ ."), r"attributes.dose\n.*'dose ____ \.' has slots \[\], expected \['e'\]"),
        (change_dose(statements=["{e} {x} {v}"]), r"attributes.dose\n.*slots \['e', 'v', 'x'\], expected \['e', 'v'\]"),
        (change_dose(plain=["what of {e"]), r"attributes.dose\n.*expected '}' before end of string"),
        (lambda table: table["names"].update(first=["a", "ab"], last=["bc", "c"]), "'abc' can be made in two ways"),
        (
            lambda table: [a.update(exam_topic=False) for a in table["attributes"].values()],
            "no attribute is an exam to",
        ),
    ],
)
def test_a_table_that_the_lab_cannot_use_is_refused_with_what_is_wrong(tmp_path, change, message):
    path = tmp_path / "table.yaml"
    path.write_text(change_table(change), encoding="utf-8")
    with pytest.raises(ValueError, match=f"field table .*table.yaml is not valid: (?s:.*){message}"):
        world.load_field(path)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xff", b"just text", b""])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "table.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="field table .*table.yaml is not valid"):
        world.load_field(tmp_path / "table.yaml")


def test_an_absent_table_is_refused_with_those_that_there_are(tmp_path):
    (tmp_path / "law.yaml").touch()
    with pytest.raises(ValueError, match=r"no field table at .*physics.yaml; the tables there are \['law'\]"):
        world.load_field(tmp_path / "physics.yaml")
