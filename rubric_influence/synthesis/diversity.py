"""Lexical diversity of a set of texts: how many different words it goes through, in measures that its length hardly
moves. Both are computed by lexicalrichness.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lexicalrichness import LexicalRichness

from rubric_influence.core.text import split_words

DRAWS = 42  # words, as McCarthy and Jarvis draw
THRESHOLD = 0.72  # of different words among all


@dataclass(frozen=True)
class Diversity:
    """mtld: the mean length, in words, of stretches in which at least THRESHOLD of the words are different, read
        forwards and backwards (McCarthy and Jarvis 2010). NaN for no words.
    hdd: HD-D, the share of different words to be expected among DRAWS words drawn at random (McCarthy and Jarvis 2007),
        in (0, 1]. NaN for fewer words.
    """

    mtld: float
    hdd: float


def measure_diversity(texts: Iterable[str]) -> Diversity:
    """The diversity of all texts as one, in their order."""
    words = [word for text in texts for word in split_words(text)]
    if not words:
        return Diversity(float("nan"), float("nan"))
    measured = LexicalRichness(words, preprocessor=None, tokenizer=None)
    hdd = float(measured.hdd(draws=DRAWS)) if len(words) >= DRAWS else float("nan")
    return Diversity(float(measured.mtld(threshold=THRESHOLD)), hdd)
