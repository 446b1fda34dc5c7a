"""The corpus of a textbook, split by module: no validation, guard or dev question is about a text that is a document.

Each module with questions belongs to one split. Documents are chunks of the test's modules alone: what others say no
test question asks for, and what other splits ask for no document says.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, chain, zip_longest
from typing import TypeVar

from rubric_influence.core.corpus_sections import BookCorpus
from rubric_influence.core.records import Document, ExamItem, content_id
from rubric_influence.data.books import Book, Module, Question, read_book
from rubric_influence.data.chunks import chunk_document
from rubric_influence.data.corpora import Corpus, describe
from rubric_influence.data.documents import drop_duplicates
from rubric_influence.data.exams import SPLITS, check_disjoint, drop_repeated_questions, shuffle_by_seed
from rubric_influence.data.expert_pairs import ask_terms

Thing = TypeVar("Thing")
Items = Mapping[str, list[ExamItem]]  # by module
# An option such as "both A and C": whoever answers sees no letters.
LETTERS = re.compile(r"((both|either|neither|only) )?\(?[a-e]\)?(, ?\(?[a-e]\)?)*,? (and|or|nor|&) \(?[a-e]\b.*", re.I)
KINDS = ("multiple_choice", "free_response", "glossary")  # the fields of a Book


def build_book(config: BookCorpus) -> Corpus:
    """Documents of the test's modules and the exam, neither dependent on the order of files or lines.

    Document.source and ExamItem.source are the module's id, ExamItem.topic is its chapter. The report adds to that of
    a text: modules (read, asked_about, and of each split), chapters (of each split) and left_out (reason -> count).
    Raises ValueError for a book that cannot be read, an unknown chapter, a book without such questions, a split that
    would be empty, and fewer documents than modules in the test.
    """
    book = read_book(config.path, config.book)
    asked, left_out = list_items(book, choose_modules(book, config.chapters), config.questions)
    left_out += book.left_out
    if not asked:
        counts = {kind: len(getattr(book, kind)) for kind in KINDS}
        raise ValueError(
            f"{config.path} has no questions to ask: corpus.questions is {config.questions}, and with answers the book "
            f"has {counts}; change corpus.questions or corpus.chapters, or take another book. Left out: "
            f"{ {reason: n for reason, n in left_out.items() if not reason.startswith('paragraphs')} }"
        )
    unique = drop_repeated_questions(asked)
    items: defaultdict[str, list[ExamItem]] = defaultdict(list)
    for item in shuffle_by_seed(unique, config.seed):
        items[item.source].append(item)
    splits = split_modules([module for module in book.modules if module.id in items], items, config)
    texts = [Document(module.text, module.title, module.id) for module in splits["test"]]
    chunks = [shuffle_by_seed(chunk_document(text, config.max_document_words), config.seed) for text in texts]
    if config.max_documents and config.max_documents < len(chunks):
        raise ValueError(
            f"corpus.max_documents is {config.max_documents}, but the test asks about {len(chunks)} modules, each of "
            "which needs a document; raise it, or lower corpus.max_exam_items or name fewer corpus.chapters"
        )
    kept = drop_duplicates(take_turns(chunks))
    documents = kept[: config.max_documents]
    exam = [replace(item, split=split) for split in SPLITS for module in splits[split] for item in items[module.id]]
    check_disjoint(exam)
    report = dict(
        documents_read=len(splits["test"]),
        duplicates_dropped=sum(map(len, chunks)) - len(kept),
        chunks=len(kept),
        modules=dict(read=len(book.modules), asked_about=len(items), **{s: len(splits[s]) for s in SPLITS}),
        chapters={split: len({module.parts for module in splits[split]}) for split in SPLITS},
        left_out=dict(sorted(left_out.items())),
    )
    return Corpus(documents, exam, report | describe(documents, exam, len(asked), len(asked) - len(unique)))


def choose_modules(book: Book, chapters: list[str] | None) -> dict[str, Module]:
    """The modules with text, by id, of these chapters or units. Raises ValueError for a title that is not there."""
    titles = dict.fromkeys(part for module in book.modules for part in module.parts)
    if unknown := [title for title in chapters or [] if title not in titles]:
        raise ValueError(f"corpus.chapters names {unknown}, which {book.name} has not; it has {list(titles)}")
    chosen = {module.id: module for module in book.modules if module.paragraphs}
    if chapters is not None:
        chosen = {id: module for id, module in chosen.items() if set(module.parts) & set(chapters)}
    return chosen


def list_items(book: Book, modules: Mapping[str, Module], kinds: Iterable[str]) -> tuple[list[ExamItem], Counter[str]]:
    """The questions of these kinds on these modules, and how many were left out by reason."""
    homes = defaultdict(set)
    for term in book.glossary:
        homes[term.term.casefold()].add(term.module)
    asked: list[ExamItem] = []
    left_out: Counter[str] = Counter()
    terms = [term for term in book.glossary if len(homes[term.term.casefold()]) == 1]
    sources = dict(
        multiple_choice=book.multiple_choice, free_response=book.free_response, glossary=tuple(ask_terms(terms))
    )
    for kind in dict.fromkeys(kinds):
        if kind == "glossary" and (shared := len(book.glossary) - len(terms)):
            left_out["terms: in the glossaries of several modules"] += shared
        for question in sources[kind]:
            module = modules.get(question.module)
            if not module:
                left_out[f"{kind}: on modules without text or outside of corpus.chapters"] += 1
            elif any(LETTERS.fullmatch(option) for option in question.options):
                left_out[f"{kind}: with an option that names others by letter"] += 1
            else:
                asked.append(make_item(question, module))
    return asked, left_out


def make_item(question: Question, module: Module) -> ExamItem:
    """An item without a split."""
    if question.options:
        index = question.options.index(question.answer)
        return ExamItem(question.question, question.options, index, "", module.chapter, module.id)
    return ExamItem(question.question, (), 0, "", module.chapter, module.id, (question.answer,))


def split_modules(modules: list[Module], items: Items, config: BookCorpus) -> dict[str, list[Module]]:
    """Split -> modules, with about its share of the questions and, as far as these go round, of each chapter.

    With max_exam_items, modules are taken from each chapter in turn while their questions are no more than that.
    Raises ValueError where a split would be empty.
    """
    chapters: defaultdict[tuple[str, ...], list[Module]] = defaultdict(list)
    for module in sorted(modules, key=lambda module: content_id(config.seed, module.id)):
        chapters[module.parts].append(module)
    order = [chapters[parts] for parts in sorted(chapters, key=lambda parts: content_id(config.seed, *parts))]
    turns = list(take_turns(order))
    counts = accumulate(len(items[module.id]) for module in turns)
    limit = config.max_exam_items or math.inf
    kept = {module.id for module, count in zip(turns, counts, strict=True) if count <= limit}
    fractions = dict(validation=config.validation, guard=config.guard, dev=config.dev)
    fractions["test"] = 1 - sum(fractions.values())
    splits: dict[str, list[Module]] = {split: [] for split in SPLITS}
    taken, total = dict.fromkeys(SPLITS, 0), 0
    for module in chain.from_iterable(order):
        if module.id in kept:
            total += len(items[module.id])
            split = max(SPLITS, key=lambda split: fractions[split] * total - taken[split])  # what lacks most so far
            splits[split].append(module)
            taken[split] += len(items[module.id])
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ValueError(
            f"the {empty[0]} split would be empty: {len(kept)} modules with {total} questions for {fractions}; raise "
            "corpus.max_exam_items, name more corpus.chapters or change corpus.validation, corpus.guard or corpus.dev"
        )
    return splits


def take_turns(groups: Iterable[Iterable[Thing]]) -> Iterator[Thing]:
    """The first of each group, then the second of each, and so on."""
    for row in zip_longest(*groups):
        yield from (thing for thing in row if thing is not None)
