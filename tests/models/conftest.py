"""A tiny language model in GGUF, as llama.cpp's converter would write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rubric_influence.lab.standins import train_tokenizer

TEXTS = ["What pumps blood? The heart pumps 5 litres a minute.", 'It\'s written: {"answer": "12 mg"}.\n\n  Twice.']
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocabulary=320)


@pytest.fixture(scope="session")
def network(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def write_gguf(network, tokenizer) -> Callable[..., Path]:
    """A function from a path to the file: the model and its tokenizer, all but the norms in the type `quantised`.

    `architecture`, `more` metadata and tensors of `extra` names change what it says of itself.
    """

    def write(
        path: Path,
        quantised: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        architecture: str = "llama",
        more: dict[str, Any] | None = None,
        extra: tuple[str, ...] = (),
    ) -> Path:
        config = network.config
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(128)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(10000.0)
        words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        special = set(tokenizer.all_special_tokens)
        merges = tokenizer._tokenizer.model.__getstate__()
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(words)
        writer.add_token_types([3 if word in special else 1 for word in words])
        writer.add_token_merges(read_merges(merges))
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        writer.add_add_bos_token(False)
        writer.add_chat_template(tokenizer.chat_template)
        for key, value in ({"tokenizer.ggml.pre": "gpt-2"} | (more or {})).items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(key, value)
        for name, weight in network.state_dict().items():
            if name != "lm_head.weight":  # tied
                add_weight(writer, name, weight, config, quantised)
        for name in extra:
            writer.add_tensor(name, torch.ones(4).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def read_merges(state: bytes) -> list[str]:
    import json

    return [pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(state)["merges"]]


def add_weight(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, config: LlamaConfig, quantised: Any) -> None:
    """Write a weight under llama.cpp's name; it orders the rows of queries and keys otherwise."""
    for heads, kind in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
        if kind in name:
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        name = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    else:
        name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    kind = quantised if weight.dim() > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quantize(weight.contiguous().numpy(), kind), raw_dtype=kind)
