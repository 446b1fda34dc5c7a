"""Words of a text in any script, templates to fill, and control tokens made harmless."""

import re

import regex

# Scripts without blanks between words: each of their characters, with its combining marks, counts as a word.
UNSPACED = r"[[\u30fc\uff70\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]&&\w]"
CHARACTER = rf"(?={UNSPACED})\X\p{{M}}*+"
BARE = regex.compile(rf"{CHARACTER}|[[\p{{L}}\p{{N}}_]--{UNSPACED}]++", regex.V1)  # \w+ and such characters
# A word as it stands, after its blanks: such a character with the punctuation around it, or all up to the next one.
OPENING, BLANK = r"[\p{Ps}\p{Pi}]", r"\s\x1c-\x1f"  # str.split's blanks
AROUND = rf"{OPENING}*+{CHARACTER}(?:(?!{OPENING})[^\w{BLANK}])*+"
WORD = regex.compile(rf"(?<![{BLANK}])[{BLANK}]*+(?:{AROUND}|[^{BLANK}{UNSPACED}]++)", regex.V1)
FOREIGN = re.compile("[^\0-\u0e00\u2000-\u2e7f]")  # all that is UNSPACED, and more; much faster to look for


def is_spaced(text: str) -> bool:
    """Whether no character of the text belongs to a script without blanks."""
    return text.isascii() or not (FOREIGN.search(text) and regex.search(UNSPACED, text, regex.V1))


def split_words(text: str) -> list[str]:
    """The text's words in lower case, without punctuation."""
    text = text.casefold()
    return re.findall(r"\w+", text) if is_spaced(text) else BARE.findall(text)


def count_words(text: str) -> int:
    """The number of words; punctuation between blanks is a word too."""
    return len(text.split()) if is_spaced(text) else len(WORD.findall(text))


def list_grams(words: list[str], length: int) -> list[tuple[str, ...]]:
    """Every run of `length` consecutive words, in order."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


# Where a chat's control token may start: <|im_start|>, </s>, <start_of_turn>, [INST], and their full-width forms.
CONTROL = re.compile(r"<(?=[|/\uff5cA-Za-z_])|\[(?=/?[A-Z_]+\])")


def fill(template: str, **slots: str) -> str:
    """The template with its {slots} replaced in one pass, so that a document that contains "{rubric}" stays as it is.

    The texts filled in are disarmed first, so that only the chat template writes control tokens.
    """
    return re.sub(r"\{(\w+)\}", lambda m: disarm(slots[m[1]]) if m[1] in slots else m[0], template)


def disarm(text: str) -> str:
    """The text with a blank inserted in everything that a tokenizer could read as a control token.

    Control tokens are found by their form, not in one tokenizer's list: the same text goes to the generator, the target
    and the teacher, which may run on a server with an unknown tokenizer.
    """
    return CONTROL.sub(lambda m: m.group(0) + " ", text)
