"""Which language a text is in, for checks and for prompts that follow their document."""

from functools import lru_cache

from py3langid.langid import LanguageIdentifier
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from rubric_influence.core.text import split_words

FEWEST_WORDS = 10  # the language of a shorter text would be a guess
SUREST = 0.95  # the least probability at which a language is believed
UNNAMED = "the language of the document"


@lru_cache(maxsize=1)
def open_identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)


@lru_cache(maxsize=64)  # a document's pairs come together
def identify(text: str) -> str:
    """The text's language, ISO 639-1; "" where it is too uncertain."""
    if len(split_words(text)) < FEWEST_WORDS:
        return ""
    found, probability = open_identifier().classify(text)
    return found if probability >= SUREST else ""


def name_language(text: str) -> str:
    """The text's language for a prompt, "French" say; UNNAMED where it is uncertain or has no common name."""
    return LANGUAGES.get(identify(text), "").title() or UNNAMED
