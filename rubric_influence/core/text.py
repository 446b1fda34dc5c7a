"""Words of a text, templates to fill, and control tokens made harmless."""

import re


def split_words(text: str) -> list[str]:
    """The text's words in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def list_grams(words: list[str], length: int) -> list[tuple[str, ...]]:
    """Every run of `length` consecutive words, in order."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


# Where a chat's control token may start: <|im_start|>, </s>, <start_of_turn>, [INST], and their full-width forms.
CONTROL = re.compile(r"<(?=[|/\uff5cA-Za-z_])|\[(?=/?[A-Z_]+\])")


def fill(template: str, **slots: str) -> str:
    """The template with its {slots} replaced in one pass, so that a document that contains "{rubric}" stays as it is.

    The texts filled in are disarmed first, so that only the chat template writes control tokens.
    """
    safe = {name: disarm(text) for name, text in slots.items()}
    return re.sub(r"\{(\w+)\}", lambda m: safe.get(m.group(1), m.group(0)), template)


def disarm(text: str) -> str:
    """The text with a blank inserted in everything that a tokenizer could read as a control token.

    Control tokens are found by their form, not in one tokenizer's list: the same text goes to the generator, the target
    and the teacher, which may run on a server with an unknown tokenizer.
    """
    return CONTROL.sub(lambda m: m.group(0) + " ", text)
