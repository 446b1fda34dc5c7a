"""What a run starts from: documents (read, deduplicated, cut to length) and an exam split into disjoint sets.

A corpus is the embedded lab's world or a user's own files; both end in the same records.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pypdf
from transformers import PreTrainedTokenizerBase

from rubric_influence.core.checks import check_text, refuse
from rubric_influence.core.files import read_text
from rubric_influence.core.records import Document
from rubric_influence.core.text import fill
from rubric_influence.data import exams
from rubric_influence.models.chat import TEMPLATE_OPTIONS, ask

SUFFIXES = (".txt", ".md", ".pdf")
# A paragraph's or a sentence's end: the blanks after it, which a cut there drops.
BORDER = re.compile(r"(\n\s*\n|(?<=[.!?])\s+)")
# A chunk ends at a paragraph's end once it holds this part of its share of words, at a sentence's once it holds all.
PARAGRAPH_SHARE = 0.8


def make_document(text: object, title: str, source: str) -> Document:
    """Raises ValueError for an empty text, or for characters that UTF-8 cannot hold (a file's name may have some)."""
    title = check_text(title, "title") if title.strip() else ""
    return Document(check_text(text, "text"), title, check_text(source, "the file's name"))


def read_pdf(path: Path) -> str:
    """The text of a PDF, pages separated by empty lines. Raises ValueError if it cannot be read."""
    try:
        return "\n\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    except Exception as error:  # a broken PDF makes pypdf fail in many ways beside its own errors
        raise ValueError(f"not a readable PDF ({type(error).__name__}: {error})") from None


def read_files(path: Path) -> tuple[list[Document], list[str]]:
    """One document a file, and the problems of those that gave none. Hidden files and folders are left alone."""
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    documents, problems = [], []
    for file in files:
        name = file.relative_to(root)
        if file.suffix.lower() not in SUFFIXES or not file.is_file() or any(p.startswith(".") for p in name.parts):
            continue
        try:
            text = read_pdf(file) if file.suffix.lower() == ".pdf" else read_text(file)
            documents.append(make_document(text, name.stem, name.as_posix()))
        except ValueError as error:
            problems.append(f"{file}: {error}")
    return documents, problems


def read_lines(path: Path) -> tuple[list[Document], list[str]]:
    """One document a line of a JSON Lines file (keys text and, if you like, title or id), and the problems."""
    documents, problems = [], []
    for number, row in exams.read_json_lines(path):
        try:
            row = exams.check_object(row)
            if "text" not in row:
                raise ValueError(f"no key 'text'; its keys are {sorted(row)}")
            title = row.get("title") or row.get("id") or ""
            documents.append(make_document(row["text"], str(title), f"{path.name}, line {number}"))
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
    return documents, problems


def read_abstracts(path: Path) -> tuple[list[Document], list[str]]:
    """One document an article of PubMedQA: its CONTEXTS (the abstract without its conclusion, LONG_ANSWER)."""
    documents, problems = [], []
    for pmid, row in exams.read_articles(path).items():
        try:
            contexts = exams.check_object(row).get("CONTEXTS")
            if not isinstance(contexts, list):
                raise ValueError(f"CONTEXTS is {contexts!r}, expected a list of paragraphs")
            paragraphs = [check_text(context, "a paragraph of CONTEXTS") for context in contexts]
            documents.append(make_document("\n\n".join(paragraphs), pmid, f"{path.name}, article {pmid}"))
        except ValueError as error:
            problems.append(f"{path}, article {pmid}: {error}")
    return documents, problems


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a folder (.txt, .md, .pdf, with subfolders), one such file, a .jsonl file or PubMedQA's .json.

    In order, repeated ones included. A document's source is its file, with the line or article where there are many.
    Raises one ValueError for all empty, undecodable or malformed documents, with where they are and what is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no documents at {path}; give a folder, a .jsonl file or PubMedQA's ori_pqal.json")
    readers = {".jsonl": read_lines, ".json": read_abstracts}
    try:
        documents, problems = (read_files if path.is_dir() else readers.get(path.suffix.lower(), read_files))(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    refuse("these documents cannot be used; correct or remove them:", problems)
    if not documents:
        raise ValueError(f"no documents in {path}; expected files {', '.join(SUFFIXES)}, .jsonl or PubMedQA's .json")
    return documents


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The first of each group of documents that differ in blanks at most."""
    kept = {}
    for document in documents:
        kept.setdefault(" ".join(document.text.split()), document)
    return list(kept.values())


def count_words(text: str) -> int:
    return len(text.split())


def cut_text(text: str, max_words: int) -> list[tuple[str, str]]:
    """Sentences (or, of a longer one, runs of `max_words` words), each after the blanks that separate it."""
    parts = ["", *BORDER.split(text.strip())]
    pieces = []
    for gap, sentence in zip(parts[::2], parts[1::2], strict=True):
        words = sentence.split()
        if len(words) <= max_words:
            pieces.append((gap, sentence))
            continue
        runs = [" ".join(words[i : i + max_words]) for i in range(0, len(words), max_words)]
        pieces += [(gap, runs[0]), *((" ", run) for run in runs[1:])]
    return pieces


def chunk_document(document: Document, max_words: int) -> list[Document]:
    """The document cut into chunks of at most `max_words` words (text between blanks), titled "title (1/3)", ...

    All words are kept, in order. Cuts fall on the ends of paragraphs or sentences, within a sentence only if it alone
    is too long, and share the words about evenly, since a last chunk of one sentence would make a poor document.
    """
    left = count_words(document.text)  # words of the open chunk and of those after it
    if left <= max_words:
        return [document]
    share = left / math.ceil(left / max_words)
    texts, chunk, size = [], "", 0
    for gap, piece in cut_text(document.text, max_words):
        words = count_words(piece)
        enough = size >= share * (PARAGRAPH_SHARE if gap.count("\n") > 1 else 1)
        if size and (size + words > max_words or (enough and left > max_words)):
            texts.append(chunk)
            left -= size
            share = left / math.ceil(left / max_words)
            chunk, size = "", 0
        chunk = chunk + gap + piece if size else piece
        size += words
    texts.append(chunk)
    name = document.title or document.source
    return [
        replace(document, text=text.strip(), title=f"{name} ({number}/{len(texts)})")
        for number, text in enumerate(texts, start=1)
    ]


def check_lengths(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, prompt_template: str, max_prompt_tokens: int
) -> None:
    """Raise ValueError, listing documents and token counts, if a document's prompt is longer than the limit.

    The prompt is the template with {document} filled in, in the tokenizer's chat template, as `generation` renders it.
    Other slots count as they stand: for a template with {rubric}, take synthesis.max_rubric_tokens off the limit.
    """
    problems = []
    for document in documents:
        conversation = ask(fill(prompt_template, document=document.text))
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS
        )
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens > max_prompt_tokens:
            problems.append(f"{document.title or document.id} ({document.source}): {tokens} tokens")
    refuse(
        f"prompts longer than {max_prompt_tokens} tokens; lower corpus.max_document_words or raise "
        "synthesis.max_prompt_tokens:",
        problems,
    )
