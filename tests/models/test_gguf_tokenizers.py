from typing import Any

import pytest
from gguf_samples import train_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.models.gguf_tokenizers import SPLITS, build_tokenizer

# Scores as SentencePiece gives them: less is later. "the" is made of "t" and "he", since "he" is merged before "th".
PIECES = {"▁": -9, "t": -9, "h": -9, "e": -9, "he": -1, "th": -2, "the": -3, "▁the": -4, "▁t": -5}
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def describe_sentencepiece(**more: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "\n\n", *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 260 + [float(score) for score in PIECES.values()],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4, *[1] * len(PIECES)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def describe_bytes(split: str, **more: Any) -> dict[str, Any]:
    tokens, merges = train_vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the", ["▁the"]),
        ("the th", ["▁the", "▁", "th"]),  # "▁t" is a token as well, but "th" is merged before it
        ("tethe", ["▁t", "e", "the"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
        ("the\n\nthe", ["▁the", "\n\n", "▁the"]),  # a token of the user's is cut out first
    ],
)
def test_sentencepiece_merges_the_best_score_first(text, pieces):
    tokenizer = build_tokenizer(describe_sentencepiece())
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["<s>", *pieces]


def test_the_file_says_whether_a_blank_and_the_start_token_are_put_first():
    tokenizer = build_tokenizer(describe_sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.tokenize("the the") == ["the", "▁the"]
    assert tokenizer.decode(tokenizer(" the é")["input_ids"]) == " the é"


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("gpt-2", ["a", "Ġ", "Ġ1234"]),
        ("smollm", ["a", "ĠĠ", "1", "2", "3", "4"]),
        ("qwen2", ["a", "Ġ", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", ["a", "Ġ", "Ġ", "123", "4"]),
    ],
)
def test_each_family_splits_blanks_and_digits_in_its_own_way(split, pieces):
    tokenizer = build_tokenizer(describe_bytes(split))
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  1234")
    assert [piece for piece, _ in cut] == pieces


@given(st.sampled_from(sorted(set(SPLITS) - {"qwen2"})), st.text())  # Qwen's composes accents
def test_every_text_comes_back(split, text):
    tokenizer = BUILT.setdefault(split, build_tokenizer(describe_bytes(split)))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


BUILT: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"tokenizer.ggml.model": "bert"}, "its tokenizer is 'bert'; known are gpt2"),
        (describe_bytes("tekken"), "its text is split as 'tekken'; known are gpt-2, smollm, qwen2, llama-bpe"),
        (describe_bytes("gpt-2", merges=None), "its tokenizer has no merges"),
        (describe_sentencepiece(scores=3), "its tokenizer has no scores"),
        (describe_sentencepiece(token_type=[1]), "differ in length"),
        (describe_bytes("gpt-2", tokens=["a", "a"]), "names a token twice"),
        (describe_bytes("gpt-2", eos_token_id=300), "eos_token_id is 300, .* vocabulary of 300 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(metadata, problem):
    with pytest.raises(ValueError, match=problem):
        build_tokenizer(metadata)
