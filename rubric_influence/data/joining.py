"""Several documents as one context, for pairs that need more than one."""

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from rubric_influence.core.records import Document
from rubric_influence.core.text import split_words


def join_alike(documents: Sequence[Document], others: Sequence[Document], count: int) -> list[Document]:
    """Each document with the `count` - 1 of `others` that are most like it by their words (TF-IDF, cosine), as one.

    Their texts follow each other under their titles; a document is not its own neighbour. Raises ValueError where
    `others` are too few.
    """
    if len(others) < count:
        raise ValueError(
            f"corpus.documents_together is {count}, and there are {len(others)} documents; lower it or give more"
        )
    counted = TfidfVectorizer(tokenizer=split_words, token_pattern=None, lowercase=True)
    vectors = counted.fit_transform([other.text for other in others])
    search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(vectors)
    nearest = search.kneighbors(counted.transform([document.text for document in documents]), return_distance=False)
    joined = []
    for document, places in zip(documents, nearest.tolist(), strict=True):
        alike = [others[place] for place in places if others[place] != document][: count - 1]
        parts = [document, *alike]
        text = "\n\n".join(f"{part.title}\n\n{part.text}".strip() for part in parts)
        titles = dict.fromkeys(part.title for part in parts if part.title)
        sources = dict.fromkeys(part.source for part in parts)
        joined.append(Document(text, " + ".join(titles), "; ".join(sources)))
    return joined
