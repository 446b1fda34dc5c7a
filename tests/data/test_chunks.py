from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import Document
from rubric_influence.data.chunks import chunk_document


def test_a_document_that_fits_is_left_as_it_is():
    document = Document(" a  b ", "t", "s")
    assert chunk_document(document, 2) == [document]


def test_chunks_end_with_sentences_and_share_the_words_evenly():
    # Ten words, at most six a chunk: two chunks of about five, so the first closes at its share, not at six.
    document = Document("one two three. four five.\nsix. seven eight nine ten.", "t", "s")
    assert chunk_document(document, 6) == [
        Document("one two three. four five.", "t (1/2)", "s"),
        Document("six. seven eight nine ten.", "t (2/2)", "s"),
    ]


def test_a_chunk_prefers_to_end_with_a_paragraph():
    # Ten words in two chunks of five: the paragraph's end after four is at 80 % of the share.
    document = Document("a b c d.\n\ne. f g h i j.", "t")
    assert [chunk.text for chunk in chunk_document(document, 6)] == ["a b c d.", "e. f g h i j."]


def test_a_sentence_longer_than_a_chunk_is_cut_between_words():
    texts = [chunk.text for chunk in chunk_document(Document("a b c d e"), 2)]
    assert texts == ["a b", "c d", "e"]


@given(st.text(alphabet="ab.!? \n\t\u2003é", max_size=300), st.integers(1, 12))
def test_chunks_keep_every_word_in_order_within_the_limit(text, max_words):
    chunks = chunk_document(Document(text, "t", "s"), max_words)
    assert " ".join(chunk.text for chunk in chunks).split() == text.split()
    assert max(len(chunk.text.split()) for chunk in chunks) <= max_words
    if len(chunks) > 1:
        assert all(chunk.text.strip() for chunk in chunks)


@given(st.lists(st.sampled_from(["a b c.", "a.", "a b c d e.", "a b.\n\n"]), min_size=20, max_size=200))
def test_no_chunk_of_short_sentences_is_tiny(sentences):
    chunks = chunk_document(Document(" ".join(sentences)), 30)
    sizes = [len(chunk.text.split()) for chunk in chunks]
    assert len(sizes) == 1 or min(sizes) >= 10  # a third of the limit
    assert all(chunk.text.endswith(".") for chunk in chunks)
