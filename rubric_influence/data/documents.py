"""Documents: read from files of many formats, freed of duplicates, and checked for their length as prompts.

`each_document` reads one after the other; all else here and in `synthesis.streaming` goes through it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rubric_influence.core.checks import check_object, check_text, refuse
from rubric_influence.core.corpus_sections import DocumentColumns
from rubric_influence.core.files import read_bytes, read_text
from rubric_influence.core.records import Document
from rubric_influence.core.text import fill
from rubric_influence.data import row_files
from rubric_influence.data.folders import Skipped, list_files
from rubric_influence.data.markup import read_docx, read_epub, read_html
from rubric_influence.data.pdfs import read_pdf
from rubric_influence.data.row_files import read_rows
from rubric_influence.data.tables import find_suffix
from rubric_influence.models.chat import ask, encode_prompts

PLAIN = (".txt", ".md", ".markdown")
# What reads a file's content: its text, and what is not in it.
MARKED_UP: dict[str, Callable[[bytes], str | tuple[str, str]]] = {
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".docx": read_docx,
    ".epub": read_epub,
    ".pdf": read_pdf,
}
FORMATS = (*PLAIN, *MARKED_UP, *row_files.SUFFIXES)
AS_NAMED = DocumentColumns()
FAULTY = "cannot be used"
TRIED = 100  # rows of a file that may all be faulty before the rest is left unread
PARTLY = "a part of a document that cannot be read"


@dataclass(frozen=True)
class Reading:
    documents: list[Document]
    skipped: list[Skipped]  # what of the files is no document, or no part of one


def read_documents(path: str | Path, columns: DocumentColumns = AS_NAMED, skip_faulty: bool = False) -> Reading:
    """The documents of a file or of a folder and its subfolders, in order, repeated ones included, and what is skipped.

    A file of text, HTML, Word, EPUB or PDF is a document; of one with rows, each row is (docs/data.md has the formats).
    A document's source is what its row says, or else its file with the row. Raises one ValueError for all files and
    rows that should hold a document and do not, with where they are and what is wrong, unless `skip_faulty`, which
    skips them; and one where nothing is left.
    """
    found = list(each_document(path, columns))
    documents = [item for item in found if isinstance(item, Document)]
    skipped = [item for item in found if isinstance(item, Skipped)]
    check_reading(Path(path), len(documents), skipped, skip_faulty)
    return Reading(documents, skipped)


def check_documents(
    path: str | Path, columns: DocumentColumns = AS_NAMED, skip_faulty: bool = False
) -> tuple[int, list[Skipped]]:
    """How many documents `read_documents` would return, and what it would skip; memory holds one document."""
    count, skipped = 0, []
    for item in each_document(path, columns):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            count += 1
    check_reading(Path(path), count, skipped, skip_faulty)
    return count, skipped


def check_reading(path: Path, count: int, skipped: list[Skipped], skip_faulty: bool) -> None:
    """Raise ValueError for faulty documents, and where there are no documents."""
    faults = [locate(path, item) for item in skipped if item.fault]
    if not count:
        kinds = f"give a file or folder of {', '.join(FORMATS)}, also packed as .gz:"
        others = sorted({f"{item.source}: {item.reason}" for item in skipped if not item.fault})
        refuse(f"no documents at {path}; {kinds}", [*faults, *others] or [f"{path}: nothing there"])
    if not skip_faulty:
        way = "correct or remove them, or have them left out by corpus.skip_faulty_documents"
        refuse(f"these documents cannot be used; {way}:", faults)


def locate(path: Path, item: Skipped) -> str:
    """What is wrong with a faulty file or row, and where: `path` is that of the corpus."""
    return f"{(path if path.is_dir() else path.parent) / item.source}: {item.fault}"


def each_document(path: str | Path, columns: DocumentColumns = AS_NAMED) -> Iterator[Document | Skipped]:
    """Documents and what is skipped, as they are read. Memory holds one file, of lines, CSV and Parquet some rows."""
    path = Path(path)
    if not path.exists():
        check_reading(path, 0, [], True)
    root = path if path.is_dir() else path.parent
    files, skipped = list_files(path)
    yield from skipped
    for file in files:
        name, suffix = file.relative_to(root).as_posix(), find_suffix(file)
        if suffix not in FORMATS:
            packed = ".gz" if suffix and file.suffix.lower() == ".gz" else ""
            yield Skipped(name, f"of a format that is not read ({suffix + packed or 'no ending'})")
            continue
        try:
            check_text(name, "the file's name")
            yield from read_rows_of(file, name, columns) if suffix in row_files.SUFFIXES else read_whole(file, name)
        except (ValueError, OSError) as error:
            said = f"cannot be read ({error.strerror}); allow it or remove it" if isinstance(error, OSError) else error
            yield Skipped(name, FAULTY, str(said))


def read_whole(file: Path, name: str) -> Iterator[Document | Skipped]:
    """The file as one document, and what of it is left out. Raises ValueError where it has no text."""
    read = MARKED_UP.get(find_suffix(file))
    found = read(read_bytes(file)) if read else read_text(file)
    text, missing = (found, "") if isinstance(found, str) else found
    title = Path(file.name[:-3] if file.suffix.lower() == ".gz" else file.name).stem
    yield Document(check_text(text, "text"), check_text(title, "the file's name"), name)
    if missing:
        yield Skipped(f"{name}, {missing}", PARTLY)


def read_rows_of(file: Path, name: str, columns: DocumentColumns) -> Iterator[Document | Skipped]:
    """A document a row. Raises ValueError for a file that cannot be read, has no rows or starts with faulty ones."""
    number = faulty = 0
    for number, (place, row) in enumerate(read_rows(file), start=1):
        if faulty == TRIED == number - 1:
            raise ValueError(f"none of its first {TRIED} rows holds a document; the rest is not read")
        try:
            if isinstance(row, dict) and "CONTEXTS" in row and columns.text[0] not in row:
                place = place.replace("entry", "article", 1)
                row = read_abstract(place.partition(" ")[2], row["CONTEXTS"])
            yield read_row(row, columns, f"{name}, {place}")
        except ValueError as error:
            faulty += 1
            yield Skipped(f"{name}, {place}", FAULTY, str(error))
    if not number:
        raise ValueError("it has no rows")


def read_abstract(pmid: str, contexts: object) -> dict[str, str]:
    """PubMedQA's CONTEXTS as a row: the abstract without its conclusion, which is LONG_ANSWER."""
    if not isinstance(contexts, list):
        raise ValueError(f"CONTEXTS is {contexts!r}, expected a list of paragraphs")
    text = "\n\n".join(check_text(context, "a paragraph of CONTEXTS") for context in contexts)
    return {"text": text, "title": pmid}


def read_row(row: object, columns: DocumentColumns, place: str) -> Document:
    """The row's document, with its text as it stands. Raises ValueError for a row without text."""
    line = check_object(row)
    if missing := [name for name in columns.text if name not in line]:
        fix = "say in corpus.document_columns which hold the text"
        raise ValueError(f"no key {missing[0]!r}; its keys are {sorted(map(str, line))}; {fix}")
    texts = [line[name] for name in columns.text]
    if len(texts) > 1:
        texts = [check_text(text, name) for name, text in zip(columns.text, texts, strict=True) if text]
    text = "\n\n".join(texts) if len(texts) > 1 else texts[0] if texts else None
    check_text(text, "text")
    title = str(line.get(columns.title) or line.get("id") or "")
    source = line.get("source")
    title = check_text(title, "title") if title.strip() else ""
    said = check_text(source, "source") if isinstance(source, str) and source.strip() else place
    return Document(str(text), title, said)


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The documents without those that differ from an earlier one in nothing but blanks."""
    kept: dict[str, Document] = {}
    for document in documents:
        kept.setdefault(" ".join(document.text.split()), document)
    return list(kept.values())


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
