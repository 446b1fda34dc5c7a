"""A baseline that knows nothing but words: BM25 (Robertson and Zaragoza 2009), by the library bm25s."""

from collections.abc import Sequence

import numpy as np
from bm25s import BM25

from rubric_influence.core.text import split_words


def lexical_similarity(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Each text's mean BM25 score over the queries, [n], at least 0. It depends on all texts, by how rare a word is.

    The score of a text z for a query q, as Lucene computes it (k1 = 1.5, b = 0.75):

        sum_{w in q} log(1 + (n - n_w + 1/2) / (n_w + 1/2)) * f_w(z) / (f_w(z) + k1 * (1 - b + b * |z| / mean |z|))

    w is a word in lower case (core.text.split_words), which n_w of the n texts hold, z f_w(z) times.
    Raises ValueError if there are no texts or no queries.
    """
    if not texts or not queries:
        raise ValueError(f"{len(texts)} texts and {len(queries)} queries; give at least one each")
    words, asked = [split_words(text) for text in texts], [word for query in queries for word in split_words(query)]
    if not any(words) or not asked:  # which bm25s cannot index, or ask for
        return np.zeros(len(texts))
    index = BM25(dtype="float64")
    index.index(words, show_progress=False)
    return index.get_scores(asked) / len(queries)  # a sum over the words of one query or of all
