"""Textbooks with their authors' questions: read from an OpenStax book's repository (CNXML) or from JSON Lines.

A module is a section of a chapter. Its paragraphs become documents; its exercises and glossary ask about them. What is
left out is counted by reason in `Book.left_out`.
"""

import posixpath
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rubric_influence.core.checks import check_object, check_text, refuse
from rubric_influence.core.files import read_json_lines
from rubric_influence.core.text import count_words
from rubric_influence.data.book_files import BOOKS, read_files
from rubric_influence.data.cnxml import local_name, name_targets, parse_xml, read_text

SHORTEST = 15  # words of a paragraph
CONTAINERS = {"content", "example", "item", "list", "quote", "section"}  # what body text is in
ASIDES = {"figure", "note", "table"}  # left out of the body and counted
SHOWN = {"figure", "iframe", "media", "table"}  # a question with one of these cannot be asked in words
BANK = re.compile("#(exercise|ost/api)")  # the address of an exercise that the repository does not hold
LISTS = frozenset({"list"})
KEY = re.compile(r"\(?([A-Za-z]|\d{1,2})\)?[).:]?")
EXERCISES = "exercises: "  # how reasons begin


@dataclass(frozen=True)
class Module:
    id: str
    title: str
    parts: tuple[str, ...]  # titles of the unit and chapter it is in, the outermost first; () for a preface
    paragraphs: tuple[str, ...]

    @property
    def chapter(self) -> str:
        return self.parts[-1] if self.parts else ""

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


@dataclass(frozen=True)
class Question:
    """An author's question with its right answer; `options` holds the answer too, and is () for an open question."""

    module: str
    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    module: str
    term: str
    meaning: str


@dataclass(frozen=True)
class Book:
    name: str
    modules: tuple[Module, ...]  # in the book's order
    multiple_choice: tuple[Question, ...] = ()
    free_response: tuple[Question, ...] = ()
    glossary: tuple[Term, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> paragraphs, exercises or terms


def read_book(path: str | Path, name: str | None = None) -> Book:
    """The book of a publisher's repository (folder, .zip or .tar.gz), or of a folder with documents.jsonl.

    `name` chooses among a repository's books (the slug in META-INF/books.xml). Raises ValueError for anything that
    cannot be read, with the file and what is wrong, and for a name that is missing or unknown.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no book at {path}; give an OpenStax book's repository or a folder with documents.jsonl")
    return read_lines(path) if (path / "documents.jsonl").is_file() else read_repository(path, name)


def read_repository(path: Path, name: str | None) -> Book:
    files = read_files(path)

    def parse(file: str) -> ET.Element:
        if file not in files:
            raise ValueError(f"{path} has no {file}, which its books name; take the whole repository")
        try:
            return parse_xml(files[file])
        except ValueError as error:
            raise ValueError(f"{path}, {file}: {error}") from None

    books = {book.get("slug", ""): book.get("href", "") for book in parse(BOOKS).iterfind("{*}book")}
    if (name or len(books) != 1) and name not in books:
        raise ValueError(f"{path} holds the books {list(books)}; name one of them in corpus.book, which is {name!r}")
    name = name or next(iter(books))
    collection = parse(posixpath.normpath(posixpath.join("META-INF", books[name])))
    content = collection.find("{*}content")
    modules, left_out = [], Counter[str]()
    multiple_choice: list[Question] = []
    free_response: list[Question] = []
    glossary: list[Term] = []
    for id, parts in dict(list_modules(content if content is not None else collection, ())).items():
        root = parse(f"modules/{id}/index.cnxml")
        targets = name_targets(root)
        title = root.find("{*}title")
        paragraphs = tuple(list_paragraphs(root, targets, left_out))
        modules.append(Module(id, "" if title is None else read_text(title, targets), parts, paragraphs))
        for question in list_questions(root, id, targets, left_out):
            (multiple_choice if question.options else free_response).append(question)
        glossary += list_terms(root, id, targets, left_out)
    if not modules:
        raise ValueError(f"{path}: the collection of {name} names no modules")
    return Book(name, tuple(modules), tuple(multiple_choice), tuple(free_response), tuple(glossary), +left_out)


def list_modules(content: ET.Element, parts: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module's id and the titles of the parts that it is in."""
    for child in content:
        if local_name(child) == "module":
            yield child.get("document", ""), parts
        elif local_name(child) == "subcollection":
            title, inner = child.find("{*}title"), child.find("{*}content")
            if inner is not None:
                yield from list_modules(inner, (*parts, "" if title is None else read_text(title, {})))


def list_paragraphs(element: ET.Element, targets: dict[str, str], left_out: Counter[str]) -> Iterator[str]:
    """The body's paragraphs and list items of SHORTEST words or more.

    A section with a class (summary, review questions, references) is none of the body, and neither are notes,
    captions and tables.
    """
    for child in element:
        name = local_name(child)
        inner = child.find(".//{*}para") is not None
        if name in ASIDES or (name == "section" and child.get("class")):
            reason = f"paragraphs: in sections {child.get('class')}" if name == "section" else f"paragraphs: in {name}s"
            paragraphs = len(child.findall(".//{*}para")) - len(child.findall(".//{*}exercise//{*}para"))
            left_out[reason] += paragraphs if name in ("note", "section") else 1
        elif name == "para" or (name in ("item", "quote") and not inner):
            text = read_text(child, targets)
            if count_words(text) >= SHORTEST:
                yield text
            else:
                left_out[f"paragraphs: under {SHORTEST} words"] += 1
        elif name in CONTAINERS:
            yield from list_paragraphs(child, targets, left_out)


def list_questions(
    root: ET.Element, module: str, targets: dict[str, str], left_out: Counter[str]
) -> Iterator[Question]:
    """The exercises that can be asked in words and have an answer."""
    for exercise in root.iterfind(".//{*}exercise"):
        try:
            yield read_exercise(exercise, module, targets)
        except ValueError as reason:
            left_out[f"{EXERCISES}{reason}"] += 1


def read_exercise(exercise: ET.Element, module: str, targets: dict[str, str]) -> Question:
    """The exercise's question. Raises ValueError with the reason where it cannot be used."""
    problem, solution = exercise.find("{*}problem"), exercise.find("{*}solution")
    if problem is None:
        raise ValueError("without a question")
    links = problem.findall(".//{*}link")
    if any(BANK.match(link.get("url", "")) for link in links):
        raise ValueError("in the publisher's bank alone")
    answer = "" if solution is None else read_text(solution, targets)
    if not answer:
        raise ValueError("without an answer")
    if any(local_name(element) in SHOWN for element in problem.iter()):
        raise ValueError("with a figure or table")
    if links:
        raise ValueError("about a linked page or figure")
    question = read_text(problem, targets, LISTS)
    if not question:
        raise ValueError("without a question")
    found = problem.find(".//{*}list")
    options = () if found is None else tuple(read_text(item, targets) for item in found.iterfind("{*}item"))
    if len(options) < 2:
        return Question(module, read_text(problem, targets), answer)
    if not all(options) or len(set(options)) < len(options):
        raise ValueError("with empty or equal options")
    first = exercise.find("{*}solution/{*}para")  # further paragraphs explain it
    key = answer if first is None else read_text(first, targets)
    return Question(module, question, options[find_key(key, options)], options)


def find_key(answer: str, options: tuple[str, ...]) -> int:
    """Which option the answer names, by letter or number or in full. Raises ValueError where that is not clear."""
    found = {options.index(answer)} if answer in options else set()
    if key := KEY.fullmatch(answer):
        found.add(int(key[1]) - 1 if key[1].isdecimal() else ord(key[1].casefold()) - ord("a"))
    if len(found) != 1 or not 0 <= (index := found.pop()) < len(options):
        raise ValueError("whose answer names no one option")
    return index


def list_terms(root: ET.Element, module: str, targets: dict[str, str], left_out: Counter[str]) -> Iterator[Term]:
    for definition in root.iterfind("{*}glossary/{*}definition"):
        term = " ".join(read_text(part, targets) for part in definition.iterfind("{*}term"))
        meaning = "; ".join(read_text(part, targets) for part in definition.iterfind("{*}meaning"))
        if term and meaning:
            yield Term(module, term, meaning)
        else:
            left_out["terms: without a meaning"] += 1


def read_lines(folder: Path) -> Book:
    """The book of documents.jsonl (id, title, text, optionally chapter) and, where they are there, of
    multiple_choice.jsonl (module, question, options, answer), free_response.jsonl (module, question, answer) and
    glossary.jsonl (module, term, meaning). Raises one ValueError for all lines that cannot be used."""
    problems: list[str] = []

    def read(file: str, *keys: str) -> Iterator[tuple[list[str], dict[str, object]]]:
        path = folder / file
        for number, row in read_json_lines(path) if path.is_file() else ():
            try:
                line = check_object(row)
                yield [check_text(line.get(key), key) for key in keys], line
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")

    modules: dict[str, Module] = {}
    for (id, title, text), line in read("documents.jsonl", "id", "title", "text"):
        if id in modules:
            problems.append(f"{folder / 'documents.jsonl'}: two modules with the id {id!r}")
        chapter = line.get("chapter")
        modules[id] = Module(id, title, (str(chapter),) if chapter else (), tuple(text.split("\n\n")))
    multiple_choice = []
    for (module, question, answer), line in read("multiple_choice.jsonl", "module", "question", "answer"):
        given = line.get("options")
        options = {key: str(option).strip() for key, option in given.items()} if isinstance(given, dict) else {}
        texts = tuple(options.values())
        key = line.get("answer_idx")
        if len(set(texts)) == len(texts) > 1 and answer in (texts if key is None else [options.get(str(key))]):
            multiple_choice.append(Question(module, question, answer, texts))
        else:
            why = f"answer {answer!r} ({key}) is not the right one of different options {given}"
            problems.append(f"{folder / 'multiple_choice.jsonl'}: {question[:60]!r}: {why}")
    open_questions = read("free_response.jsonl", "module", "question", "answer")
    free = [Question(module, question, answer) for (module, question, answer), _ in open_questions]
    terms = [Term(*row) for row, _ in read("glossary.jsonl", "module", "term", "meaning")]
    refuse(f"the book in {folder} cannot be used; correct or remove what is listed:", problems)
    if not modules:
        raise ValueError(f"{folder / 'documents.jsonl'} holds no modules")
    return Book(folder.name, tuple(modules.values()), tuple(multiple_choice), tuple(free), tuple(terms))
