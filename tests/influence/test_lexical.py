import math

import numpy as np
import pytest

from rubric_influence.influence.lexical import lexical_similarity


def test_score_is_the_hand_computed_one():
    # Words: dose in two of three texts, liver in one; lengths 2, 3, 1, mean 2. Of one occurrence
    #   in two words   1 / (1 + 1.5 * (0.25 + 0.75 * 1))   = 1 / 2.5
    #   in three       1 / (1 + 1.5 * (0.25 + 0.75 * 1.5)) = 1 / 3.0625; two of liver: 2 / 4.0625
    dose, liver = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    found = lexical_similarity(["Dose, daily", "dose: liver? LIVER!", "colour"], ["the liver dose", "dose"])
    assert found.tolist() == pytest.approx([dose / 2.5, (2 * dose / 3.0625 + liver * 2 / 4.0625) / 2, 0])


def test_rare_words_count_more_and_unknown_ones_nothing():
    texts = ["common rare", "common plain", "common plain"]
    rare, common = (lexical_similarity(texts, [query])[0] for query in ("rare unheard", "common"))
    assert rare > common > 0


@pytest.mark.parametrize("texts, queries", [(["", "?!"], ["a"]), (["a", "b"], ["", "..."]), (["a", "b"], ["c"])])
def test_texts_that_share_no_word_with_a_query_score_nothing(texts, queries):
    assert np.array_equal(lexical_similarity(texts, queries), [0, 0])


def test_scripts_without_blanks_have_words_too():
    assert (lexical_similarity(["肝臓の薬", "色"], ["肝臓"]) > 0).tolist() == [True, False]


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="0 texts and 1 queries"):
        lexical_similarity([], ["a"])
    with pytest.raises(ValueError, match="1 texts and 0 queries"):
        lexical_similarity(["a"], [])
