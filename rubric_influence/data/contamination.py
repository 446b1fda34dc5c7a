"""Exam questions found in other texts, so that no exam item is trained on or rewarded."""

from collections.abc import Iterable

from rubric_influence.core.records import ExamItem
from rubric_influence.core.text import list_grams, split_words


class ContaminationIndex:
    """An index of exam questions that finds them in any number of texts.

    A text is contaminated if it shares `words` consecutive words with a question, or contains the whole of a shorter
    question. Case and punctuation do not count. A question of fewer than `shortest` words is not looked for: "What is
    it?" is in any text. Options are not looked for either, since a document may well name them. Raises ValueError
    where words < shortest or shortest < 1.
    """

    def __init__(self, items: Iterable[ExamItem], words: int = 13, shortest: int = 4):
        if not 1 <= shortest <= words:
            raise ValueError(f"shortest is {shortest} and words {words}; expected 1 <= shortest <= words")
        self.seen: dict[tuple[str, ...], ExamItem] = {}
        for item in items:
            question = split_words(item.question)
            if len(question) >= shortest:
                for gram in list_grams(question, min(words, len(question))):
                    self.seen.setdefault(gram, item)
        self.lengths = sorted({len(gram) for gram in self.seen}, reverse=True)

    def find(self, text: str) -> str:
        """Why the text is contaminated, with the split and id of the first item found; "" where it is not."""
        written = split_words(text)
        for length in self.lengths:
            for gram in list_grams(written, length):
                if item := self.seen.get(gram):
                    return f"shares {length} words with {item.split} question {item.id}"
        return ""
