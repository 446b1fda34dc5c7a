"""The tokenizer that a GGUF file describes, as llama.cpp reads it.

transformers 5.17 reads GGUF tokenizers as well, wrongly for whole families: Gemma's BPE as a unigram model ("This" is
four tokens), every llama's text as GPT-2 splits it, the first token as the end token. A model that is fed other tokens
than it was trained on gives no error, it is merely worse. So each kind built here was compared with llama.cpp, token by
token, on 400 texts of textbooks and on odd ones (only Qwen's, which composes accents, differs), and other kinds
are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types
SPACE = "\u2581"  # how SentencePiece writes a blank
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# How text is split before byte pairs are merged, by tokenizer.ggml.pre.
SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: split_by(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"),
    "llama-bpe": lambda: split_by(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"),
}
WHOLE_WORDS_FIRST = ("llama-bpe",)  # a word that is a token is taken as it is, whatever merges there are


def check_tokenizer(metadata: dict[str, Any]) -> None:
    """Raise ValueError unless `build_tokenizer` can build the tokenizer of this metadata."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and split not in SPLITS:
        raise ValueError(f"its text is split as {split!r}; known are {', '.join(SPLITS)}")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"its tokenizer is {kind!r}; known are gpt2 (byte-level BPE) and llama (SentencePiece BPE)")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise ValueError("its vocabulary is missing or names a token twice")
    needed = "merges" if kind == "gpt2" else "scores"
    if not isinstance(metadata.get(f"tokenizer.ggml.{needed}"), list):
        raise ValueError(f"its tokenizer has no {needed}")
    if len(metadata.get("tokenizer.ggml.token_type", tokens)) != len(tokens):
        raise ValueError("its vocabulary and its token types differ in length")
    for key, place in metadata.items():
        if key.endswith("_token_id") and not (isinstance(place, int) and 0 <= place < len(tokens)):
            raise ValueError(f"{key} is {place}, which is no place in its vocabulary of {len(tokens)} tokens")


def build_tokenizer(
    metadata: dict[str, Any], end: str | None = None, pad: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template; `end` and `pad` replace what the file says.

    Raises ValueError where `check_tokenizer` does, and where `end` or `pad` is no token.
    """
    check_tokenizer(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    byte_level = metadata["tokenizer.ggml.model"] == "gpt2"
    tokenizer = build_byte_level(metadata) if byte_level else build_sentencepiece(metadata)
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    for kind in (CONTROL, USER_DEFINED):
        found = [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token in found])
    special = {
        role: tokens[place]
        for role in ("bos", "eos", "unknown", "padding")
        if (place := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None
    }
    for option, token in (("eos", end), ("padding", pad)):
        if token is not None and token not in tokens:
            raise ValueError(f"{token!r} is no token of the file's vocabulary; its end token is {special.get('eos')!r}")
        special |= {option: token} if token else {}
    if metadata.get("tokenizer.ggml.add_bos_token", not byte_level) and "bos" in special:
        start = special["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, tokens.index(start))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special.get("bos"),
        eos_token=special.get("eos"),
        unk_token=special.get("unknown"),
        pad_token=special.get("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def build_byte_level(metadata: dict[str, Any]) -> Tokenizer:
    split = metadata["tokenizer.ggml.pre"]
    vocabulary = {token: place for place, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split in WHOLE_WORDS_FIRST))
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # as in Qwen's own tokenizer; llama.cpp leaves it out
    tokenizer.pre_tokenizer = SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_sentencepiece(metadata: dict[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            list_merges(vocabulary, metadata["tokenizer.ggml.scores"]),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    blanks = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blanks])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = blanks
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def list_merges(vocabulary: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a third, in the order in which SentencePiece merges: best score first."""
    merges = [
        (-scores[place], (token[:cut], token[cut:]))
        for token, place in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]
