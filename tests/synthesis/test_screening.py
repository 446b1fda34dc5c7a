"""Hand-made pairs for every check, and how their counts add up."""

import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rubric_influence.core.config import Quality
from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.models.embedders import load_embedder
from rubric_influence.synthesis.screening import (
    ExamMeanings,
    LanguageCheck,
    NearDuplicates,
    Screen,
    count_flags,
    find_personal_data,
    measure_nearness,
    measure_support,
    passes_luhn,
    passes_mod97,
    remove_flagged,
)

ROOT = Path(__file__).parents[2]
TEXT = "one two three four five six seven eight nine ten"  # 8 runs of three words


def pair(question: str, answer: str = "yes", slot: int = 0, problem: str = "") -> QAPair:
    return QAPair(question, answer, "d", "r", "t", 0, slot, problem)


def test_a_near_duplicate_is_found_from_its_jaccard_similarity_on():
    changed = TEXT.replace("ten", "so")  # 7 runs shared of 9: 0.778
    assert NearDuplicates(0.7).add("a", TEXT) == ""
    for threshold, found in ((0.77, "a"), (0.78, "")):
        seen = NearDuplicates(threshold)
        seen.add("a", TEXT)
        assert seen.add("b", changed) == found


def test_the_earliest_is_named_and_case_and_punctuation_do_not_count():
    seen = NearDuplicates(0.8)
    assert [seen.add(name, text) for name, text in (("a", TEXT), ("b", "other"), ("c", TEXT.upper() + "!"))] == [
        *("", "", "a")
    ]


@given(st.lists(st.text(max_size=30), max_size=12))
def test_a_repeated_text_is_always_found(texts):
    seen = NearDuplicates(0.8)
    for place, text in enumerate(texts):
        seen.add(f"first {place}", text)
    assert all(seen.add(f"again {place}", text) for place, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe@example.org today", "e-mail address"),
        ("call +44 20 7946 0958 now", "telephone number"),
        ("call (555) 123-4567 now", "telephone number"),
        ("it is 078-05-1120 .", "social security number"),
        ("paid with 4111 1111 1111 1111 .", "payment card number"),
        ("paid with 4111 1111 1111 1112 .", ""),
        ("to GB82 WEST 1234 5698 7654 32", "IBAN"),
        ("to GB83 WEST 1234 5698 7654 32", ""),
        ("from 192.168.0.1 it came", "IP address"),
        ("version 1.2.3.4.5 of 300.1.1.1", ""),
        ("between 2001-2005, 95% CI 1.20-3.45, p < 0.001, n = 12345", ""),
        ("a dose of 500 mg, 3 times, in 10-20 patients (2019; 12: 345-352)", ""),
    ],
)
def test_personal_data_is_told_by_form_and_check_digits(text, kind):
    assert find_personal_data(text) == kind


def test_check_digits_by_hand():
    # 79927398713: from the right 3+2+7+9+3+2+9+7 ... the textbook's valid number; one digit off is none.
    assert passes_luhn("79927398713") and not passes_luhn("79927398710")
    assert passes_mod97("DE89 3704 0044 0532 0130 00") and not passes_mod97("DE88 3704 0044 0532 0130 00")


def test_another_language_is_found_in_long_texts_only():
    english = LanguageCheck("en")
    assert english.find("Le patient doit prendre ce médicament avec de l'eau tous les matins avant le repas") == (
        "reads as fr"
    )
    assert english.find("The patient should take this drug with water every morning before the meal") == ""
    assert english.find("Bonjour le monde") == ""
    with pytest.raises(ValueError, match="quality.language is 'xx', expected one of"):
        LanguageCheck("xx")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("肺炎首选什么药？", "首选青霉素。"),
        ("肺炎の第一選択薬は？", "ペニシリンです。"),
        ("โรคปอดบวมใช้ยาอะไร", "ใช้เพนิซิลลิน"),
    ],
)
def test_pairs_without_blanks_have_words_and_near_duplicates(question, answer):
    settings = Quality(shortest=8, near_duplicate=0.6, language=None)
    pairs = [pair(question, answer), pair(question, answer + "吗", 1), pair("今天天气如何？", "今天是晴天。", 2)]
    assert [sorted(found) for found in Screen(settings, []).check(pairs)] == [[], ["near_duplicate"], []]
    assert "length" in Screen(Quality(longest=9, language=None), []).check(pairs)[0]


def test_a_near_copy_in_chinese_is_found_at_the_threshold():
    text = "甲乙丙丁戊己庚辛壬癸"  # 8 runs of three characters; with the last one changed, 7 of 9 are shared
    for threshold, found in ((0.77, "a"), (0.78, "")):
        seen = NearDuplicates(threshold)
        seen.add("a", text)
        assert seen.add("b", text.replace("癸", "子")) == found


def test_the_language_of_ten_characters_is_judged():
    english = LanguageCheck("en")
    assert english.find("患者は激しい胸の痛みを訴えた。") == "reads as ja"
    assert english.find("胸の痛みを訴えた。") == ""  # eight


def test_a_pair_must_be_in_the_language_of_its_document():
    follows = LanguageCheck("document")
    english = "The patient should take this drug with water every morning before the meal"
    french = "Le patient doit prendre ce médicament avec de l'eau tous les matins avant le repas"
    assert follows.find(french, english) == "reads as fr, its document as en"
    assert [follows.find(*texts) for texts in ((french, french), (english, english), ("oui", english))] == ["", "", ""]
    assert follows.find(french, "5 mg") == ""  # a document whose language is uncertain


@pytest.mark.parametrize(
    ("answer", "document", "share"),
    [
        ("It inhibits platelets at 75 mg.", "Clopidogrel (75 mg) is an inhibitor of platelet aggregation.", 1.0),
        ("It inhibits thrombin at 75 mg.", "Clopidogrel (75 mg) is an inhibitor of platelet aggregation.", 2 / 3),
        ("yes", "no word of it", 1.0),
        ("首选青霉素", "肺炎首选青霉素", 1.0),
        ("首选青霉素", "今天天气很好", 0.0),
        ("用aspirin", "aspirin is a drug", 1.0),
    ],
)
def test_support_is_the_part_of_an_answers_stems_that_its_document_holds(answer, document, share):
    assert measure_support(answer, document) == pytest.approx(share)


@given(st.text(max_size=80), st.text(max_size=80))
def test_a_document_supports_what_it_holds(before, answer):
    assert measure_support(answer, answer) == 1.0
    assert 0.0 <= measure_support(answer, before) <= 1.0


def test_an_answer_beside_its_document_is_flagged_and_documents_must_be_there():
    pairs = [
        pair("what is given ?", "penicillin"),
        pair("what is not given ?", "streptomycin", 1),
        pair("", "", 2, "no"),
    ]
    settings = Quality(grounding=0.5)
    flags = Screen(settings, []).check(pairs, {"d": "Penicillin is given first."})
    assert flags == [{}, {"grounding": "its document holds 0.00 of the answer"}, {}]
    with pytest.raises(ValueError, match="the documents of 2 pairs .* are not at hand"):
        Screen(settings, []).check(pairs)
    with pytest.raises(ValueError, match="not at hand"):
        Screen(Quality(language="document"), []).check(pairs)


def find_embedder() -> Path:
    """The folder of a real embedder; without it the test is skipped."""
    given = os.environ.get("RUBRIC_INFLUENCE_EMBEDDER", ROOT / "data/models/all-minilm-l6-v2")
    if not Path(given).is_dir():
        pytest.skip(f"no embedder in {given}; set RUBRIC_INFLUENCE_EMBEDDER to the folder of all-MiniLM-L6-v2")
    return Path(given)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


VECTORS = {
    "Aspirin thins blood.": (1.0, 0.0, 0.0),
    "The dose is 75 mg.": (0.0, 1.0, 0.0),
    "Aspirin thins blood. The dose is 75 mg.": (0.6, 0.8, 0.0),
    "How much is given?": (0.0, 1.0, 0.0),
    "Of it, 75 mg.": (0.8, 0.6, 0.0),
    "A lot.": (0.0, 0.0, 1.0),
}


def look_up(texts):
    return np.array([VECTORS[text] for text in texts])


def test_one_passage_must_be_near_to_question_and_answer():
    pairs = [pair("How much is given?", "Of it, 75 mg."), pair("How much is given?", "A lot.")]
    document = "Aspirin thins blood. The dose is 75 mg."
    # The sentences give min(0, 0.8) and min(1, 0.6); both together min(0.8, 0.48 + 0.48).
    assert measure_nearness(pairs, document, look_up) == pytest.approx([0.8, 0.0])
    assert measure_nearness(pairs, "The dose is 75 mg.", look_up) == pytest.approx([0.6, 0.0])


def test_a_pair_that_is_far_from_its_own_document_is_flagged_and_can_be_removed():
    pairs = [
        pair("How much is given?", "Of it, 75 mg."),
        replace(pair("How much is given?", "Of it, 75 mg.", 1), document_id="other"),
        pair("How much is given?", "A lot.", 2),
        pair("", "", 3, "no"),
    ]
    documents = {"d": "Aspirin thins blood. The dose is 75 mg.", "other": "The dose is 75 mg."}
    settings = Quality(grounding_meaning=0.7, embedder="any", near_duplicate=1.0, remove=["grounding_meaning"])
    flags = Screen(settings, [], look_up).check(pairs, documents)
    assert [found.get("grounding_meaning") for found in flags] == [
        *(None, "cosine 0.600 with its document", "cosine 0.000 with its document", None)
    ]
    assert [p.problem.split(":")[0] for p in remove_flagged(pairs, flags, settings.remove)] == [
        *("", "removed", "removed", "no")
    ]
    with pytest.raises(ValueError, match="the documents of 3 pairs .*quality.grounding_meaning .* need them"):
        Screen(settings, [], look_up).check(pairs)


def test_experts_conclusions_are_told_from_those_of_another_abstract(real_data):
    articles = json.loads(real_data("pubmedqa/ori_pqal.json").read_text()).values()
    rows = [(article["LONG_ANSWER"], "\n".join(article["CONTEXTS"])) for article in articles]
    flagged = [measure_support(answer, document) < 0.3 for answer, document in rows]
    others = [measure_support(rows[place][0], rows[place - 1][1]) < 0.3 for place in range(len(rows))]
    assert (round(np.mean(flagged), 2), round(np.mean(others), 2)) == (0.05, 0.96)


@pytest.mark.slow
def test_a_textbooks_pairs_are_told_from_false_ones_by_meaning(real_data):
    """Questions and terms with their own answer, with another of their module, and with one of another module."""
    book, items = real_data("textbooks/anatomy-physiology"), defaultdict(list)
    embed = load_embedder(str(find_embedder()))
    texts = {row["id"]: row["text"] for row in read_rows(book / "documents.jsonl")}
    for name, asked, said in (("free_response", "question", "answer"), ("glossary", "term", "meaning")):
        for row in read_rows(book / f"{name}.jsonl"):
            items[row["module"]].append((row[asked], row[said]))
    modules = [module for module, rows in items.items() if len(rows) > 20][::20]
    right, hard, easy = [], [], []
    for module, other in zip(modules, modules[1:] + modules[:1], strict=True):
        questions, answers = zip(*items[module], strict=True)
        shifted, foreign = answers[1:] + answers[:1], [answer for _, answer in items[other]]
        for found, told in ((right, answers), (hard, shifted), (easy, foreign)):
            pairs = list(map(pair, questions, told))
            found += measure_nearness(pairs, texts[module], embed)
    flagged = [np.mean(np.array(found) < 0.4) for found in (right, hard, easy)]
    area = roc_auc_score([1] * len(right) + [0] * len(hard), right + hard)
    assert np.allclose(flagged, (0.09, 0.16, 0.73), atol=0.01) and round(area, 2) == 0.74 and len(right) == 186


def test_a_paraphrase_lies_nearer_than_exam_questions_to_each_other():
    vectors = {"a": (1.0, 0.0), "b": (0.8, 0.6), "c": (0.0, 1.0), "near a": (0.96, 0.28), "far": (0.6, -0.8)}
    items = [ExamItem(text, ("y", "n"), 0, "test") for text in "abc"]
    meanings = ExamMeanings(items, lambda texts: np.array([vectors[text] for text in texts]), 1.0)
    assert meanings.threshold == pytest.approx(0.8)  # a and b
    found = meanings.find(["near a", "far", "c"])
    assert found[0] == f"cosine 0.960 with test question {items[0].id}" and found[1] == ""
    assert "1.000" in found[2]


def test_flags_remove_nothing_unless_asked_and_counts_add_up():
    exam = [ExamItem("which drug is given first for severe pain ?", ("a", "b"), 0, "test")]
    pairs = [
        pair(TEXT),
        pair(TEXT, slot=1),
        pair("Say: which drug is given first for severe pain?", "write to a@b.org", 2),
        pair("", "", 3, "no JSON object"),
        pair("too", "short", 4),
    ]
    flags = Screen(Quality(), exam).check(pairs)
    assert [sorted(found) for found in flags] == [
        *([], ["near_duplicate"], ["exam_words", "personal_data"], [], ["length"])
    ]
    assert flags[1]["near_duplicate"] == f"nearly repeats pair {pairs[0].id}"
    assert remove_flagged(pairs, flags, []) == pairs
    kept = remove_flagged(pairs, flags, ["near_duplicate", "exam_words"])
    assert [p.problem for p in kept[1:3]] == [
        f"removed: {c}: {flags[i + 1][c]}" for i, c in enumerate(("near_duplicate", "exam_words"))
    ]
    assert count_flags(kept, flags) == {
        "valid": 4,
        "kept": 2,
        "removed": {"exam_words": 1, "near_duplicate": 1},
        "flagged": {"exam_words": 1, "length": 1, "near_duplicate": 1, "personal_data": 1},
    }


def test_pairs_in_batches_have_the_flags_of_all_at_once():
    pairs = [pair(f"{TEXT} {number % 7}", slot=number) for number in range(20)]
    whole, parts = Screen(Quality(), []), Screen(Quality(), [])
    assert whole.check(pairs) == [found for start in range(0, 20, 6) for found in parts.check(pairs[start : start + 6])]
