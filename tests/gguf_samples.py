"""A tiny GGUF file: a Llama with random weights and a byte-level tokenizer, as llama.cpp's own tools write them."""

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
TEXTS = ["What does the heart do? It pumps blood.", "user assistant 0123456789"] * 4


def train_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(merge) for merge in merges]


def write_gguf(path: Path, architecture: str = "llama", split: str = "smollm", left_out: str = "", **more: int) -> Path:
    """Write the file; `left_out` names a tensor that it then lacks, `more` further settings of the architecture."""
    tokens, merges = train_vocabulary()
    hidden, heads, layers, inner, rng = 16, 2, 2, 32, np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    for name, value in more.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,), "output": (len(tokens), hidden)}
    for n in range(layers):
        shapes |= {f"blk.{n}.{part}": (hidden, hidden) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{n}.{part}": (hidden,) for part in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{n}.{part}": (inner, hidden) for part in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{n}.ffn_down"] = (hidden, inner)
    for name, shape in shapes.items():
        if name != left_out:
            writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
