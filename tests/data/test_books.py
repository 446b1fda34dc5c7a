"""A book's modules, questions and glossary are read, and what is left out is counted by reason."""

import json

import pytest
from book_samples import WORDS, write_book, write_exercise, write_lakes, write_module
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.books import Question, Term, find_key, read_book

PARAGRAPH = f"<para>The lake {WORDS}</para>"


def read_module(tmp_path, body=PARAGRAPH, exercises="", terms=None):
    return read_book(write_book(tmp_path, {"m1": ("One", write_module("Lake", body, exercises, terms))}))


def test_a_book_is_read_in_the_order_of_its_collection(tmp_path):
    book = read_book(write_lakes(tmp_path, chapters=2, size=1))
    assert (book.name, [module.id for module in book.modules]) == ("lakes", ["m0", "m1", "m2"])
    assert [module.parts for module in book.modules] == [(), ("Chapter 0",), ("Chapter 1",)]
    assert book.modules[1].text == "\n\n".join(f"Lake 1 in part {part} {WORDS}." for part in range(4))
    assert book.multiple_choice[0] == Question("m1", "Where does lake 1 rise?", "hill 1", ("hill 1", "plain", "city"))
    assert [question.answer for question in book.multiple_choice] == ["hill 1", "plain", "hill 2", "plain"]
    assert book.free_response[1] == Question("m2", "Why is lake 2 cold?", "Because spring 2 feeds it.")
    assert book.glossary[:2] == (
        Term("m1", "lake 1", "water number 1"),
        Term("m1", "shore 1", "land at the water number 1"),
    )


def test_units_come_before_chapters(tmp_path):
    folder = write_lakes(tmp_path, chapters=1, size=1)
    file = folder / "collections/lakes.collection.xml"
    text = file.read_text().replace(
        "<c:subcollection>", "<c:subcollection><md:title>Unit</md:title><c:content><c:subcollection>"
    )
    file.write_text(text.replace("</c:subcollection>", "</c:subcollection></c:content></c:subcollection>"))
    assert read_book(folder).modules[1].parts == ("Unit", "Chapter 0")
    assert read_book(folder).modules[1].chapter == "Chapter 0"


def test_the_body_is_paragraphs_and_items_of_fifteen_words(tmp_path):
    body = (
        f"{PARAGRAPH}<para>Too short.</para><note><para>A note {WORDS}</para><para>Two.</para></note>"
        f"<figure><caption>A figure {WORDS}</caption></figure><table/><section><title>A section</title>"
        f"<para>Inside, a lake {WORDS}</para><list><item>As an item, it {WORDS}</item><item>small</item></list>"
        f"<quote>Quoted, it {WORDS}</quote><quote><para>Quoted again, it {WORDS}</para></quote></section>"
        f"<exercise><problem><para>Unkeyed, why do lakes {WORDS}?</para></problem></exercise>"
    )
    book = read_module(tmp_path, body)
    starts = ["The lake", "Inside, a lake", "As an item, it", "Quoted, it", "Quoted again, it"]
    assert list(book.modules[0].paragraphs) == [f"{start} {WORDS}" for start in starts]
    assert book.left_out == {
        "paragraphs: under 15 words": 2,
        "paragraphs: in notes": 2,
        "paragraphs: in figures": 1,
        "paragraphs: in tables": 1,
        "paragraphs: in sections review": 1,
        "exercises: without an answer": 1,
    }


@pytest.mark.parametrize(
    ("exercise", "reason"),
    [
        (write_exercise("Which?", ["a", "b"], ""), "without an answer"),
        (write_exercise("", ["a", "b"], "A"), "without a question"),
        (write_exercise("Which?", ["a", "b"], "C"), "whose answer names no one option"),
        (write_exercise("Which?", ["a", "b"], "Both."), "whose answer names no one option"),
        (write_exercise("Which?", ["B", "A"], "A"), "whose answer names no one option"),
        (write_exercise("Which?", ["a", "a"], "A"), "with empty or equal options"),
        (write_exercise("Which?", ["a", ""], "A"), "with empty or equal options"),
        (write_exercise('Watch <link url="u">this</link>. Why?', [], "So."), "about a linked page or figure"),
        (write_exercise('What is in <link target-id="f"/>?', [], "It."), "about a linked page or figure"),
        (write_exercise('<link class="os-embed" url="#exercise/L1"/>', [], ""), "in the publisher's bank alone"),
        (write_exercise("What is this?<figure><media/></figure>", [], "A."), "with a figure or table"),
        ("<exercise/>", "without a question"),
    ],
)
def test_an_exercise_is_left_out(tmp_path, exercise, reason):
    book = read_module(tmp_path, exercises=exercise)
    assert not book.multiple_choice and not book.free_response
    assert book.left_out[f"exercises: {reason}"] == 1


def test_options_may_stand_inside_the_question_and_an_explanation_after_the_key(tmp_path):
    exercise = (
        "<exercise><problem><para>Which? <list><item>one</item><item>two</item></list></para></problem>"
        "<solution><para>B</para><para>As told above.</para></solution></exercise>"
    )
    assert read_module(tmp_path, exercises=exercise).multiple_choice == (
        Question("m1", "Which?", "two", ("one", "two")),
    )


@pytest.mark.parametrize("answer", ["B", "b", "(b)", "b.", "B)", "2", "two"])
def test_a_key_is_a_letter_a_number_or_the_option(answer):
    assert find_key(answer, ("one", "two", "three")) == 1


@given(st.text(max_size=6), st.lists(st.text(max_size=3), unique=True, max_size=4))
def test_any_key_names_an_option_or_is_refused(answer, options):
    try:
        assert 0 <= find_key(answer, tuple(options)) < len(options)
    except ValueError as error:
        assert str(error) == "whose answer names no one option"


def test_a_term_without_a_meaning_is_left_out(tmp_path):
    book = read_module(tmp_path, terms={"lake": "water", "shore": " "})
    assert book.glossary == (Term("m1", "lake", "water"),) and book.left_out["terms: without a meaning"] == 1


def test_one_of_several_books_is_chosen_by_name(tmp_path):
    folder = write_lakes(tmp_path, chapters=1, size=1)
    books = folder / "META-INF/books.xml"
    books.write_text(books.read_text().replace("</container>", '<book slug="seas" href="../x.xml"/></container>'))
    assert read_book(folder, "lakes").name == "lakes"
    for name in (None, "rivers"):
        with pytest.raises(ValueError, match=rf"holds the books \['lakes', 'seas'\]; name one .* which is {name!r}"):
            read_book(folder, name)
    with pytest.raises(ValueError, match=r"has no x.xml, which its books name; take the whole repository"):
        read_book(folder, "seas")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules/m1/index.cnxml", "<document>", r"modules/m1/index.cnxml: not XML"),
        ("modules/m1/index.cnxml", "<!DOCTYPE x><document/>", r"m1/index.cnxml: it declares a document type \(x\)"),
        ("META-INF/books.xml", '<c><book slug="lakes" href="../../../etc/passwd"/></c>', r"has no ../../etc/passwd"),
        ("META-INF/books.xml", "<c/>", r"holds the books \[\]"),
        ("collections/lakes.collection.xml", "<c/>", "the collection of lakes names no modules"),
        ("collections/lakes.collection.xml", '<c><module document="../m1"/></c>', r"has no modules/../m1/index.cnxml"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, file, content, message):
    folder = write_lakes(tmp_path, chapters=1, size=1)
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_book(folder)


def test_a_book_that_is_not_there_is_told(tmp_path):
    with pytest.raises(
        ValueError, match="no book at .*; give an OpenStax book's repository or a folder with documents"
    ):
        read_book(tmp_path / "none")


LINES = {
    "documents": {"id": "m1", "title": "Lake", "text": "One.\n\nTwo.", "chapter": "Waters"},
    "multiple_choice": {"module": "m1", "question": "Which?", "options": {"A": "a", "B": "b "}, "answer": "b"},
    "free_response": {"module": "m1", "question": "Why?", "answer": "So."},
    "glossary": {"module": "m1", "term": "lake", "meaning": "water"},
}


def write_lines(folder, changes=None):
    for name, row in LINES.items():
        row = row | (changes or {}).get(name, {})
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_folder_of_json_lines_is_a_book(tmp_path):
    book = read_book(write_lines(tmp_path))
    assert (book.modules[0].parts, book.modules[0].paragraphs) == (("Waters",), ("One.", "Two."))
    assert book.multiple_choice == (Question("m1", "Which?", "b", ("a", "b")),)
    assert book.free_response == (Question("m1", "Why?", "So."),)
    assert book.glossary == (Term("m1", "lake", "water"),)
    for name in ("multiple_choice", "free_response", "glossary"):
        (tmp_path / f"{name}.jsonl").unlink()
    assert read_book(tmp_path).modules == book.modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": {"text": " "}}, r"documents.jsonl, line 1: text is ' ', expected non-empty text"),
        ({"documents": {"id": None}}, "documents.jsonl, line 1: id is None"),
        (
            {"multiple_choice": {"answer": "c"}},
            r"multiple_choice.jsonl: 'Which\?': answer 'c' \(None\) is not the right",
        ),
        ({"multiple_choice": {"answer_idx": "A"}}, r"answer 'b' \(A\) is not the right one"),
        ({"multiple_choice": {"options": ["a", "b"]}}, "is not the right one of different options"),
        ({"multiple_choice": {"options": {"A": "b", "B": "b"}}}, "is not the right one of different options"),
        ({"glossary": {"meaning": 3}}, "glossary.jsonl, line 1: meaning is 3"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_book(write_lines(tmp_path, changes))


def test_two_modules_of_one_id_are_refused(tmp_path):
    file = write_lines(tmp_path) / "documents.jsonl"
    file.write_text(file.read_text() * 2)
    with pytest.raises(ValueError, match="two modules with the id 'm1'"):
        read_book(tmp_path)


@pytest.mark.parametrize(
    ("book", "counts"),
    [
        ("anatomy-physiology/cnxml.tar.gz", (198, 714, 371, 3190)),
        ("american-government/cnxml.tar.gz", (100, 105, 60, 415)),
        ("anatomy-physiology", (198, 708, 508, 3190)),
        ("american-government", (99, 101, 60, 415)),
        ("psychology", (105, 311, 169, 847)),
        ("us-history", (173, 124, 138, 410)),
    ],
)
def test_a_real_book_has(real_data, book, counts):
    read = read_book(real_data(f"textbooks/{book}"))
    assert tuple(map(len, (read.modules, read.multiple_choice, read.free_response, read.glossary))) == counts


def name_question(question):
    return question.module, *("".join(filter(str.isalnum, text)) for text in (question.question, question.answer))


@pytest.mark.parametrize("name", ["anatomy-physiology", "american-government"])
def test_the_publishers_files_hold_every_question_that_was_prepared_from_them(real_data, name):
    prepared = read_book(real_data(f"textbooks/{name}")).multiple_choice
    found = {name_question(q) for q in read_book(real_data(f"textbooks/{name}/cnxml.tar.gz")).multiple_choice}
    assert [question for question in prepared if name_question(question) not in found] == []


def test_a_real_book_holds_no_markup(real_data):
    book = read_book(real_data("textbooks/anatomy-physiology/cnxml.tar.gz"))
    texts = [text for module in book.modules for text in module.paragraphs]
    assert not [text for text in texts if "<" in text and ">" in text or "\ue000" in text or "\n" in text]
    assert any("HCO3–" in text for text in texts) and any("Ca^2+" in text for text in texts)
    assert min(len(text.split()) for text in texts) == 15
