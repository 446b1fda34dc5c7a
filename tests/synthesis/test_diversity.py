import math
import random

import pytest

from rubric_influence.synthesis.diversity import measure_diversity


def write_texts(words, count):
    """So many texts of five words each, drawn from a vocabulary of `words`."""
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(words)}" for _ in range(5)) for _ in range(count)]


def test_diversity_by_hand():
    # Seven different words in turn: the tenth word takes the share of different ones to 7 of 10, below 0.72.
    found = measure_diversity(["A b, c d e f g."] * 20)
    assert found.mtld == 10
    # A word is missing among 42 of 140 with the chance of drawing all from the other 120.
    missing = math.comb(120, 42) / math.comb(140, 42)
    assert found.hdd == pytest.approx(7 * (1 - missing) / 42)


def test_length_hardly_moves_it_and_repetition_lowers_it():
    rich, poor = (write_texts(words, count=400) for words in (60, 12))
    short, long, repeated = (measure_diversity(texts) for texts in (rich[:200], rich, poor))
    assert short.mtld == pytest.approx(long.mtld, rel=0.1) and short.hdd == pytest.approx(long.hdd, rel=0.1)
    assert repeated.mtld < long.mtld / 2 and repeated.hdd < long.hdd / 2


def test_too_few_words_have_no_measure():
    assert math.isnan(measure_diversity([]).mtld) and math.isnan(measure_diversity(["one"] * 41).hdd)
    assert measure_diversity(["one"] * 42).hdd == pytest.approx(1 / 42)
