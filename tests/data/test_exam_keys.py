import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.exam_columns import Asked
from rubric_influence.data.exam_keys import find_answers

ABC = ("x", "y", "z")


def ask(*given, texts=ABC, names=()):
    return Asked("Which?", names, texts, tuple(zip("mn", given, strict=False)))


def answer(*rows, said=None):
    return find_answers(rows, [said] * len(rows))


@pytest.mark.parametrize(
    ("row", "index"),
    [
        (ask("B"), 1),
        (ask(" c\n"), 2),
        (ask("z"), 2),
        (ask(["y"]), 1),
        (ask([0, 0, 1]), 2),
        (ask(0), 0),
        (ask("3"), 2),
        (ask("iii", names=("i", "ii", "III")), 2),
        (ask(2, names=("1", "2", "3")), 1),
        (ask("12", texts=("6", "12")), 1),
        (ask("B", 1), 1),
        (ask("B", 2), 1),
    ],
    ids=[
        "a letter",
        "a letter with blanks",
        "a text",
        "a list of one",
        "flags",
        "a number that can only count from 0",
        "a number that can only count from 1",
        "a key in any case",
        "a key that is a number",
        "a text that is a number",
        "a letter and a number from 0",
        "a letter and a number from 1",
    ],
)
def test_a_right_answer_may_be(row, index):
    assert answer(row) == [index]


@pytest.mark.parametrize("value", ["D", 4, -2, "xy", True, 1.0, ["x", "y"], [1, 1, 0], {"a": 1}, "1" * 5000])
def test_what_names_no_option_is_a_fault_of_its_row(value):
    fault, right = answer(ask(value), ask("A"))
    assert isinstance(fault, ValueError) and "expected the key, number or text of one of" in str(fault) and right == 0


def test_columns_that_disagree_are_a_fault():
    (fault,) = answer(ask("A", "y"))
    assert str(fault) == "m is 'A' but n is 'y'; the options are ['x', 'y', 'z']"


def test_other_rows_settle_from_where_numbers_count():
    assert answer(ask(1), ask(2), ask(0)) == [1, 2, 0]
    assert answer(ask(1), ask(2), ask(3)) == [0, 1, 2]
    assert answer(ask("1"), ask("2"), ask("0")) == [1, 2, 0]


def test_other_rows_settle_whether_a_letter_is_a_key():
    odd = ("B", "A", "C")
    assert answer(ask("A", "B", texts=odd), ask("C", "z")) == [0, 2]
    assert answer(ask("A", texts=odd), ask("B")) == [0, 1]  # no option of the second row is B
    with pytest.raises(ValueError, match=r"m is 'A' .* 'B' \(keys\) or 'A' \(texts\)\?"):
        answer(ask("A", texts=odd))
    assert answer(ask("A", texts=odd), said="keys") == [0] and answer(ask("A", texts=odd), said="texts") == [1]


def test_numbers_that_fit_both_ways_or_none_are_refused():
    with pytest.raises(ValueError, match=r"m is 1 .*'y' \(numbers from 0\) or 'x' \(numbers from 1\)\? .* 2 are open"):
        answer(ask(1), ask(2))
    with pytest.raises(ValueError, match="No single way to read m is left"):
        answer(ask(0), ask(1), ask(3))


def test_what_the_profile_says_decides_and_makes_others_faulty():
    assert answer(ask(1), ask(2), said="numbers from 1") == [0, 1]
    right, fault = answer(ask(1), ask(3), said="numbers from 0")
    assert right == 1 and isinstance(fault, ValueError)


def test_numbers_from_0_may_stand_beside_keys_and_texts():
    rows = (ask("B"), ask(1), ask("z"), ask("A", "12", texts=("12", "2", "1")))
    assert answer(*rows, said="numbers from 0") == [1, 1, 2, 0]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.sampled_from(["keys", "texts", "numbers from 0", "numbers from 1"]),
    st.booleans(),
)
def test_right_answers_written_in_any_way_are_read_back_or_refused(indices, way, textual):
    texts = ("one", "two", "three", "four", "five")
    written = {"keys": "ABCDE", "texts": texts, "numbers from 0": range(5), "numbers from 1": range(1, 6)}[way]
    rows = [ask(str(written[i]) if textual else written[i], texts=texts) for i in indices]
    assert answer(*rows, said=way) == indices
    telling = {"numbers from 0": 0, "numbers from 1": 4}.get(way, indices[0])  # only a 0 or a 5 tells where they start
    if telling in indices:
        assert answer(*rows) == indices
    else:
        with pytest.raises(ValueError, match="No single way"):
            answer(*rows)
