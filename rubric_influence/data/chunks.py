"""Documents cut into chunks, at the ends of paragraphs or sentences."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import regex

from rubric_influence.core.records import Document
from rubric_influence.core.text import WORD, count_words, is_spaced

# The end of a paragraph or sentence: the blanks after it, which a cut there drops.
BORDER = re.compile(r"((?=\s)(?:\n\s*\n|(?<=[.!?])\s+))")
# In scripts without blanks it needs no blank after its closing quotes, and a blank may end a phrase.
UNSPACED_BORDER = regex.compile(
    r"""(\n\s*\n|(?<=[.!?\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}])\s+"""
    r"""|(?=[^。！？｡\p{Pe}\p{Pf}"'])(?<=[。！？｡][\p{Pe}\p{Pf}"']*+)\s*)"""
)
# A chunk ends at a paragraph's end once it holds this part of its share of words, at a sentence's once it holds all.
PARAGRAPH_SHARE = 0.8


def cut_text(text: str, max_words: int) -> Iterator[tuple[str, str, int]]:
    """Blanks, the sentence after them and its words; a sentence of more words is cut into runs of `max_words`."""
    border, joint, find = (BORDER, " ", str.split) if is_spaced(text) else (UNSPACED_BORDER, "", WORD.findall)
    parts = ["", *border.split(text.strip())]
    for gap, sentence in zip(parts[::2], parts[1::2], strict=True):
        words = find(sentence)
        for i in range(0, len(words) or 1, max_words):
            run = words[i : i + max_words]
            yield joint if i else gap, joint.join(run) if len(words) > max_words else sentence, len(run)


def chunk_document(document: Document, max_words: int) -> list[Document]:
    """The document cut into chunks of at most `max_words` words (see `count_words`), titled "title (1/3)", ...

    All words are kept, in order. Cuts fall on the ends of paragraphs or sentences, within a sentence only if it alone
    is too long, and share the words about evenly, since a last chunk of one sentence would make a poor document.
    """
    if count_words(document.text) <= max_words:
        return [document]
    pieces = list(cut_text(document.text, max_words))
    left = sum(words for *_, words in pieces)  # of the open chunk and of those after it
    share = left / math.ceil(left / max_words)
    texts, chunk, size = [], "", 0
    for gap, piece, words in pieces:
        enough = size >= share * (PARAGRAPH_SHARE if gap.count("\n") > 1 else 1)
        if size and (size + words > max_words or (enough and left > max_words)):
            texts.append(chunk)
            left -= size
            share = left / math.ceil(left / max_words)
            chunk, size = "", 0
        chunk += gap + piece
        size += words
    texts.append(chunk)
    name = document.title or document.source
    return [replace(document, text=text.strip(), title=f"{name} ({n}/{len(texts)})") for n, text in enumerate(texts, 1)]
