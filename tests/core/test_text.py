"""What counts as a word in any script, and how texts are cut by it; the rule for scripts with blanks is the oracle."""

import math
import re
import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.core.records import Document
from rubric_influence.core.text import FOREIGN, count_words, is_spaced, split_words
from rubric_influence.data.chunks import chunk_document

SPACED = "abcXYZéßñ αж 한국 0189 .,;:!?'\"()-–“” \n\t\u2003\x1c\u0301"
UNSPACED = (
    "患者胸痛々。！？｡，「」『』”“… かなカナー゛ｶﾞ ไทยกำลังที่๑ ລາວ ខ្មែរ မြန်မာ བོད་ཡིག། \u200b\u3000\U000e0100\U00020000"
)
MIXED = st.text(st.sampled_from(SPACED + UNSPACED), max_size=200)
CHINESE = "患者，男，45岁，反复上腹痛三年，加重一周。“这是为什么呢？”医生问道！他给病人开了PPI类药物，并嘱其按时服用。"
THAI = "ผู้ป่วยมีอาการเจ็บหน้าอกอย่างรุนแรง แพทย์จึงให้ยาแก่ผู้ป่วยทันที "
JAPANESE = "患者は激しい胸の痛みを訴えた。「薬を飲みましたか？」と医師が尋ねた。カルテにはECGの結果があった。"


def chunk_spaced(text: str, max_words: int) -> list[str]:
    """The chunks of a text in which blanks part all words, as they were before other scripts counted."""
    left = len(text.split())
    if left <= max_words:
        return [text]
    share, chunks, chunk, size = left / math.ceil(left / max_words), [], "", 0
    parts = ["", *re.split(r"(\n\s*\n|(?<=[.!?])\s+)", text.strip())]
    pieces = []
    for gap, sentence in zip(parts[::2], parts[1::2], strict=True):
        words = sentence.split()
        runs = [" ".join(words[i : i + max_words]) for i in range(0, len(words), max_words)]
        pieces += [(gap, sentence)] if len(words) <= max_words else zip([gap] + [" "] * len(runs), runs, strict=False)
    for gap, piece in pieces:
        words = len(piece.split())
        enough = size >= share * (0.8 if gap.count("\n") > 1 else 1)
        if size and (size + words > max_words or (enough and left > max_words)):
            chunks.append(chunk)
            left -= size
            share, chunk, size = left / math.ceil(left / max_words), "", 0
        chunk += gap + piece
        size += words
    return [text.strip() for text in [*chunks, chunk]]


def chunk(text: str, max_words: int) -> list[str]:
    return [part.text for part in chunk_document(Document(text, "t"), max_words)]


@given(st.text(st.sampled_from(SPACED), max_size=300), st.integers(1, 12))
def test_scripts_with_blanks_have_the_words_and_chunks_that_blanks_make(text, max_words):
    assert is_spaced(text) and split_words(text) == re.findall(r"\w+", text.casefold())
    assert count_words(text) == len(text.split())
    assert chunk(text, max_words) == chunk_spaced(text, max_words)


@given(MIXED, st.integers(1, 12))
def test_chunks_of_any_scripts_keep_the_text_within_the_limit(text, max_words):
    chunks = chunk(text, max_words)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert max(count_words(part) for part in chunks) <= max_words
    if not is_spaced(text):
        place = 0
        for part in chunks:  # each is a piece of the text as it is, after the one before
            place = text.index(part, place) + len(part)


@given(MIXED, MIXED)
def test_words_do_not_depend_on_what_stands_around_them(before, after):
    assert split_words(f"{before} {after}") == split_words(before) + split_words(after)
    assert count_words(f"{before} {after}") == count_words(before) + count_words(after)


def test_every_character_of_a_script_without_blanks_is_seen():
    names = ("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CH", "LAO LETTER", "KHMER LETTER")
    names += ("MYANMAR LETTER", "TIBETAN LETTER", "CJK COMPATIBILITY IDEOGRAPH")
    found = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.name(c, "").startswith(names) and c.isalpha()]
    assert len(found) > 90_000 and all(FOREIGN.match(c) and not is_spaced(c) for c in found)
    for character in map(chr, range(0x20000)):  # a word of other scripts is what it is without a neighbour
        if unicodedata.category(character) not in ("Cn", "Cs") and is_spaced(character.casefold()):
            assert split_words(character + " 好") == [*re.findall(r"\w+", character.casefold()), "好"]


@pytest.mark.parametrize(
    ("text", "bare", "standing"),
    [
        ("你好，「世界」。", ["你", "好", "世", "界"], 4),
        ("服用ABC-1，每日2次", ["服", "用", "abc", "1", "每", "日", "2", "次"], 7),
        ("กำลัง ที่", ["กำ", "ลั", "ง", "ที่"], 4),
        ("カード ｶﾞ", ["カ", "ー", "ド", "ｶﾞ"], 4),
        ("မာ ខ្មែ བོད་", ["မာ", "ខ្មែ", "བོ", "ད"], 4),
        ("한국 e\u0301 a-b", ["한국", "e", "a", "b"], 3),
    ],
)
def test_words_by_hand(text, bare, standing):
    assert split_words(text) == bare and count_words(text) == standing


@pytest.mark.parametrize(("sample", "ends"), [(CHINESE, "。！”"), (JAPANESE, "。」")])
def test_a_long_text_is_cut_at_the_ends_of_sentences(sample, ends):
    text = (sample * 500)[:20_500]
    chunks = chunk(text, 1500)
    assert math.ceil(count_words(text) / 1500) == len(chunks) and 11 <= len(chunks) <= 14
    assert "".join(chunks) == text and all(part[-1] in ends for part in chunks[:-1])


def test_thai_is_cut_at_blanks():
    text = (THAI * 400)[:20_500]
    chunks = chunk(text, 1500)
    assert " ".join(chunks) == text.strip() and max(map(count_words, chunks)) <= 1500
    assert len(chunks) == math.ceil(count_words(text) / 1500)


def test_20500_characters_without_a_full_stop_make_14_chunks():
    chunks = chunk("胸痛" * 10_250, 1500)
    assert [len(part) for part in chunks] == [1500] * 13 + [1000]


@pytest.mark.parametrize("unit", [CHINESE, "患", "」", "。」", "「", "ก็่", " ", "a\n", "。\n "])
def test_the_time_grows_with_the_length(unit):
    text = "好" + unit * (200_000 // len(unit)) + "\n\n好"
    began = time.process_time()
    chunk(text, 100), split_words(text)
    assert time.process_time() - began < 10  # a second; with time in the square of the length, minutes
