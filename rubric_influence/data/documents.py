"""Documents: read from files, freed of duplicates, cut into chunks, and checked for their length as prompts."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pypdf
import regex
from transformers import PreTrainedTokenizerBase

from rubric_influence.core.checks import check_object, check_text, refuse
from rubric_influence.core.files import read_json_lines, read_text
from rubric_influence.core.records import Document
from rubric_influence.core.text import WORD, count_words, fill, is_spaced
from rubric_influence.data.exams import read_articles
from rubric_influence.models.chat import ask, encode_prompts

SUFFIXES = (".txt", ".md", ".pdf")
# The end of a paragraph or sentence: the blanks after it, which a cut there drops.
BORDER = re.compile(r"((?=\s)(?:\n\s*\n|(?<=[.!?])\s+))")
# In scripts without blanks it needs no blank after its closing quotes, and a blank may end a phrase.
UNSPACED_BORDER = regex.compile(
    r"""(\n\s*\n|(?<=[.!?\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}])\s+"""
    r"""|(?=[^。！？｡\p{Pe}\p{Pf}"'])(?<=[。！？｡][\p{Pe}\p{Pf}"']*+)\s*)"""
)
# A chunk ends at a paragraph's end once it holds this part of its share of words, at a sentence's once it holds all.
PARAGRAPH_SHARE = 0.8


# A format's readers yield the source of each document, and what parses it: a call that returns title and text. They
# raise ValueError for a file that cannot be read, the call for a row that holds no document.
Rows = Iterator[tuple[str, Callable[[], tuple[str, object]]]]


def list_files(path: Path) -> Rows:
    """The files with documents in a folder and its subfolders, or the one file; hidden ones are left out."""
    root = path if path.is_dir() else path.parent
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = file.relative_to(root)
        if file.suffix.lower() in SUFFIXES and file.is_file() and not any(p.startswith(".") for p in name.parts):
            yield name.as_posix(), partial(parse_file, file)


def parse_file(file: Path) -> tuple[str, str]:
    """The file's name and text; empty lines separate the pages of a PDF."""
    if file.suffix.lower() != ".pdf":
        return file.stem, read_text(file)
    try:
        return file.stem, "\n\n".join(page.extract_text() for page in pypdf.PdfReader(file).pages)
    except Exception as error:  # a broken PDF makes pypdf fail in many ways beside its own errors
        raise ValueError(f"not a readable PDF ({type(error).__name__}: {error})") from None


def parse_line(row: object) -> tuple[str, object]:
    line = check_object(row)
    if "text" not in line:
        raise ValueError(f"no key 'text'; its keys are {sorted(line)}")
    return str(line.get("title") or line.get("id") or ""), line["text"]


def parse_abstract(pmid: str, article: object) -> tuple[str, str]:
    """PubMedQA's id and CONTEXTS: the abstract without its conclusion, which is LONG_ANSWER."""
    contexts = check_object(article).get("CONTEXTS")
    if not isinstance(contexts, list):
        raise ValueError(f"CONTEXTS is {contexts!r}, expected a list of paragraphs")
    return pmid, "\n\n".join(check_text(context, "a paragraph of CONTEXTS") for context in contexts)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": lambda path: ((f"{path.name}, line {n}", partial(parse_line, row)) for n, row in read_json_lines(path)),
    ".json": lambda path: (
        (f"{path.name}, article {pmid}", partial(parse_abstract, pmid, row))
        for pmid, row in read_articles(path).items()
    ),
}


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a folder (.txt, .md, .pdf, with subfolders), one such file, a .jsonl file or PubMedQA's .json.

    They come in order, repeated ones included. A document's source is its file, with the line or article where a file
    has many. A line is an object with the key text and, optionally, title or id. Raises one ValueError for all empty,
    undecodable or malformed documents, with where they are and what is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no documents at {path}; give a folder, a .jsonl file or PubMedQA's ori_pqal.json")
    root, suffix = (path, "") if path.is_dir() else (path.parent, path.suffix.lower())
    documents, problems = [], []
    try:
        for source, parse in READERS.get(suffix, list_files)(path):
            try:
                title, text = parse()
                title = check_text(title, "title") if title.strip() else ""
                documents.append(Document(check_text(text, "text"), title, check_text(source, "the file's name")))
            except ValueError as error:
                problems.append(f"{root / source}: {error}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    refuse("these documents cannot be used; correct or remove them:", problems)
    if not documents:
        raise ValueError(f"no documents in {path}; expected files {', '.join(SUFFIXES)}, .jsonl or PubMedQA's .json")
    return documents


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The documents without those that differ from an earlier one in nothing but blanks."""
    kept: dict[str, Document] = {}
    for document in documents:
        kept.setdefault(" ".join(document.text.split()), document)
    return list(kept.values())


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


def check_lengths(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, prompt_template: str, max_prompt_tokens: int
) -> None:
    """Raise ValueError, listing documents and token counts, if a document's prompt is longer than the limit.

    The prompt is the template with {document} filled in, encoded as the engines encode it. Other slots count as they
    stand: for a template with {rubric}, subtract synthesis.max_rubric_tokens from the limit.
    """
    problems = []
    for document in documents:
        (prompt,) = encode_prompts(tokenizer, [ask(fill(prompt_template, document=document.text))])
        if len(prompt) > max_prompt_tokens:
            problems.append(f"{document.title or document.id} ({document.source}): {len(prompt)} tokens")
    limit = f"prompts longer than {max_prompt_tokens} tokens"
    refuse(f"{limit}; lower corpus.max_document_words or raise synthesis.max_prompt_tokens:", problems)
