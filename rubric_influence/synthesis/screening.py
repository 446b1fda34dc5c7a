"""Checks of every pair: near-duplicates, exam questions, personal data, language, length and support by its document.

A check only flags a pair, with the reason; the profile says which checks remove it (`quality.remove`). Pairs may come
in any number of batches: memory holds the index of near-duplicates.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from datasketch import MinHash, MinHashLSH

from rubric_influence.core.config import Check, Quality
from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.core.text import is_spaced, list_grams, split_words
from rubric_influence.data.chunks import cut_text
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.models.embedders import Embed
from rubric_influence.synthesis.languages import identify, open_identifier

REMOVED = "removed: "  # prefix of the problem of a valid pair that is not kept
NEED_DOCUMENTS = "quality.grounding, quality.grounding_meaning and quality.language: document"
PERMUTATIONS = 128
SHINGLE = 3  # words
STEM = 5  # letters: words that begin alike are mostly forms of one
SHORTEST_STEM = 4  # shorter words, but for numbers, are mostly those of any text
# Checks that look at a pair and its document alone, so that RL can make them at every step.
ALONE: tuple[Check, ...] = ("personal_data", "language", "length", "grounding", "grounding_meaning")
LONGEST_SENTENCE = 100  # words; embedders read a few hundred tokens and leave out the rest
Flags = dict[str, str]  # check -> why

# Personal data are found by their form, so names are not found. Where a form has check digits, they must be right.
PERSONAL = {
    "e-mail address": re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}\b"),
    "telephone number": re.compile(
        r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
        r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
    ),
    "social security number": re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    "payment card number": re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "IP address": re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])"),
}


def passes_luhn(number: str) -> bool:
    """Whether a payment card's last digit checks the others (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in reversed(number) if digit in "0123456789"]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def passes_mod97(iban: str) -> bool:
    """Whether an IBAN's check digits are right (ISO 13616)."""
    compact = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def find_personal_data(text: str) -> str:
    """The first kind of `PERSONAL` whose form is in the text; "" where there is none."""
    checks = {"payment card number": passes_luhn, "IBAN": passes_mod97}
    for kind, pattern in PERSONAL.items():
        if any(checks.get(kind, bool)(match.group()) for match in pattern.finditer(text)):
            return kind
    return ""


class LanguageCheck:
    """Finds texts that are surely in another language than the expected one, ISO 639-1, or their "document"'s."""

    def __init__(self, language: str):
        self.language = language
        if language not in (known := ["document", *sorted(open_identifier().labels)]):
            raise ValueError(f"quality.language is {language!r}, expected one of {known}")

    def find(self, text: str, document: str = "") -> str:
        """The reason to flag the text; "" where its language is right, or either language is too uncertain."""
        found, follows = identify(text), self.language == "document"
        expected = identify(document) if follows else self.language
        if not found or not expected or found == expected:
            return ""
        return f"reads as {found}" + (f", its document as {expected}" if follows else "")


@lru_cache(maxsize=64)  # the pairs of a document come together
def list_stems(text: str) -> frozenset[str]:
    """What a text speaks of: its numbers and longer words' first letters, or of scripts without blanks, all pairs."""
    words = split_words(text)
    if is_spaced(text):
        return frozenset(w[:STEM] for w in words if len(w) >= SHORTEST_STEM or any(map(str.isdigit, w)))
    runs = [(word, following) for word, following in pairwise([*words, ""]) if not is_spaced(word)]
    pairs = frozenset(word + following for word, following in runs if not is_spaced(following))
    return pairs | list_stems(" ".join(word for word in words if is_spaced(word)))


def measure_support(answer: str, document: str) -> float:
    """The part of the answer's stems that the document holds, in [0, 1]; 1 for an answer without any, such as "yes"."""
    stems = list_stems(answer)
    return len(stems & list_stems(document)) / len(stems) if stems else 1.0


def measure_nearness(pairs: Sequence[QAPair], document: str, embed: Embed) -> list[float]:
    """How near each pair comes to what the document says: the highest min(cos(question), cos(answer)) of a passage.

    A passage is a sentence, or two that follow each other, as an answer may be spread over both. One passage must be
    near to the question and to the answer: by the answer alone, another question's answer would be as well supported.
    """
    sentences = [sentence for _, sentence, _ in cut_text(document, LONGEST_SENTENCE)]
    passages = [*sentences, *map(" ".join, pairwise(sentences))]
    vectors = np.asarray(embed([*passages, *(pair.question for pair in pairs), *(pair.answer for pair in pairs)]))
    held, asked, said = np.split(vectors, [len(passages), len(passages) + len(pairs)])
    return np.minimum(asked @ held.T, said @ held.T).max(axis=1).tolist()


class NearDuplicates:
    """Texts seen so far, and which of them a new one nearly repeats.

    The similarity of two texts is |A & B| / |A | B| (Jaccard) of the sets of their runs of three words. Candidates
    come from locality-sensitive hashing of MinHash signatures (datasketch), which may miss a few near the threshold.
    The similarity of each candidate is then computed exactly, so no text below the threshold is found.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        # A lower threshold than the real one: candidates cost little, and what the index misses is never found.
        self.index = MinHashLSH(threshold=0.75 * threshold, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
        self.empty = MinHash(num_perm=PERMUTATIONS, seed=1)
        self.shingles: dict[str, tuple[int, frozenset[int]]] = {}  # name -> its place in order, hashes of its runs

    def add(self, name: str, text: str) -> str:
        """The earliest name whose text this one nearly repeats; without one, "", and the text is added as `name`."""
        words = split_words(text)
        grams = {" ".join(gram).encode() for gram in list_grams(words, min(SHINGLE, len(words)))}
        signature = self.empty.copy()
        signature.update_batch(sorted(grams))
        own = frozenset(signature.hashfunc(gram) for gram in grams)
        for other in sorted(self.index.query(signature), key=lambda found: self.shingles[found][0]):
            known = self.shingles[other][1]
            if len(own & known) >= self.threshold * len(own | known):
                return other
        self.shingles[name] = len(self.shingles), own
        self.index.insert(name, signature, check_duplication=False)
        return ""


class ExamMeanings:
    """Exam questions in an embedding space, and how near to one a text must lie to count as its paraphrase.

    The threshold comes from the exam: the `part` quantile of the cosines between each question and its nearest other.
    Two questions of one exam ask different things, so a text that is nearer than nearly all of these asks the same.
    """

    def __init__(self, items: Sequence[ExamItem], embed: Embed, part: float):
        if len(items) < 2:
            raise ValueError(f"{len(items)} exam questions; at least two are needed to tell what is near")
        self.items, self.embed = items, embed
        self.known = np.asarray(embed([item.question for item in items]))
        among = self.known @ self.known.T
        np.fill_diagonal(among, -1.0)
        self.threshold = float(np.quantile(among.max(axis=1), part))

    def find(self, texts: Sequence[str]) -> list[str]:
        """The reason to flag each text, or ""."""
        cosines = np.asarray(self.embed(texts)) @ self.known.T
        nearest = ((cosine.max(), self.items[cosine.argmax()]) for cosine in cosines)
        return [
            f"cosine {cosine:.3f} with {item.split} question {item.id}" if cosine > self.threshold else ""
            for cosine, item in nearest
        ]


class Screen:
    """All checks of one set of pairs, in the order in which they are given."""

    def __init__(self, settings: Quality, exam: Sequence[ExamItem], embed: Embed | None = None):
        """Without `embed`, no meanings are compared. Raises ValueError for an unknown language."""
        self.settings, self.embed = settings, embed
        self.seen = NearDuplicates(settings.near_duplicate)
        self.words = ContaminationIndex(exam, words=settings.exam_words)
        part = settings.exam_meaning
        self.meanings = ExamMeanings(exam, embed, part) if embed and part is not None and len(exam) > 1 else None
        self.language = LanguageCheck(settings.language) if settings.language else None
        grounded = settings.grounding is not None or settings.grounding_meaning is not None
        self.needs_documents = grounded or settings.language == "document"

    def check(self, pairs: Sequence[QAPair], documents: Mapping[str, str] | None = None) -> list[Flags]:
        """The flags of every pair, in order; a pair with a problem has none and is compared with no other.

        `documents`: id -> text. Raises ValueError where a check needs the document of a pair that is not among them.
        """
        texts = documents or {}
        if self.needs_documents and (lost := [p.id for p in pairs if not p.problem and p.document_id not in texts]):
            raise ValueError(
                f"the documents of {len(lost)} pairs ({lost[0]}, ...) are not at hand, and "
                f"{NEED_DOCUMENTS} need them; give the documents, or set these to null"
            )
        asked = [pair.question for pair in pairs if not pair.problem]
        meanings = iter(self.meanings.find(asked) if self.meanings and asked else [""] * len(asked))
        near = self.measure_pairs([pair for pair in pairs if not pair.problem], texts)
        return [
            {}
            if pair.problem
            else self.check_one(pair, next(meanings), texts.get(pair.document_id, ""), near.get(pair.id, 1.0))
            for pair in pairs
        ]

    def measure_pairs(self, pairs: Sequence[QAPair], documents: Mapping[str, str]) -> dict[str, float]:
        """Pair -> `measure_nearness`, if that is checked. Memory holds the passages of one document."""
        near: dict[str, float] = {}
        if self.embed and self.settings.grounding_meaning is not None:
            by_document = defaultdict(list)
            for pair in pairs:
                by_document[pair.document_id].append(pair)
            for name, own in by_document.items():
                found = measure_nearness(own, documents[name], self.embed)
                near |= zip((pair.id for pair in own), found, strict=True)
        return near

    def check_one(self, pair: QAPair, meaning: str, document: str, near: float) -> Flags:
        text = f"{pair.question} {pair.answer}"
        words, personal = len(split_words(text)), find_personal_data(text)
        fits = self.settings.shortest <= words <= self.settings.longest
        earlier, least, nearest = self.seen.add(pair.id, text), self.settings.grounding, self.settings.grounding_meaning
        support = 1.0 if least is None else measure_support(pair.answer, document)
        found = {
            "near_duplicate": f"nearly repeats pair {earlier}" if earlier else "",
            "exam_words": self.words.find(text),
            "exam_meaning": meaning,
            "personal_data": f"holds the form of: {personal}" if personal else "",
            "language": self.language.find(text, document) if self.language else "",
            "length": "" if fits else f"{words} words",
            "grounding": f"its document holds {support:.2f} of the answer" if support < (least or 0) else "",
            "grounding_meaning": f"cosine {near:.3f} with its document" if near < (nearest or 0) else "",
        }
        return {check: why for check, why in found.items() if why}


def remove_flagged(pairs: Sequence[QAPair], flags: Sequence[Flags], checks: Sequence[str]) -> list[QAPair]:
    """The pairs, in order. The `problem` of a removed one names the first of `checks` that flags it, and its reason."""
    reasons = [[f"{REMOVED}{check}: {found[check]}" for check in checks if check in found] for found in flags]
    return [replace(pair, problem=why[0]) if why else pair for pair, why in zip(pairs, reasons, strict=True)]


def count_flags(pairs: Sequence[QAPair], flags: Sequence[Flags]) -> dict[str, object]:
    """Counts of pairs after `remove_flagged`: valid = kept + removed (by one check each); removed, flagged by check."""
    removed = Counter(p.problem.removeprefix(REMOVED).split(":")[0] for p in pairs if p.problem.startswith(REMOVED))
    flagged = Counter(check for found in flags for check in found)
    kept = sum(not pair.problem for pair in pairs)
    counts = {"removed": dict(sorted(removed.items())), "flagged": dict(sorted(flagged.items()))}
    return {"valid": kept + removed.total(), "kept": kept, **counts}
