"""A live transformers model as a text engine.

Prompts go through the tokenizer's chat template, with thinking switched off where the template has such a switch, since
the answer is to be JSON at once. Only the parameters given here shape the sampling: the top-k, temperature and
penalties that a model's generation_config recommends do not apply.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xgrammar
from pydantic import BaseModel
from transformers import GenerationConfig, PreTrainedTokenizerBase
from xgrammar.contrib.hf import LogitsProcessor

from rubric_influence.engines.base import Completion, Sampling
from rubric_influence.models.chat import Conversation, check_room, encode_prompts, find_ends, read_row


class TransformersEngine:
    """Batched sampling from a live model, which reinforcement learning may change between calls.

    `model` is a causal LM of transformers or a PeftModel around one; the types of both lack generate(). It runs in its
    own dtype. Prompts are batched by length and padded on the left; batch i draws from a generator seeded by (seed, i),
    so the samples depend on `batch_size`. torch's global generators are left as they were.
    """

    independent = False

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, name: str, batch_size: int):
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(f"the tokenizer of {name} has {len(tokenizer)} tokens, the model {rows}: not a match")
        self.end_ids = find_ends(tokenizer, model.generation_config.eos_token_id, name)
        self.grammars: dict[type[BaseModel], xgrammar.CompiledGrammar] = {}

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        ids = encode_prompts(self.tokenizer, conversations)
        most = limit = sampling.max_tokens
        check_room(ids, most, getattr(self.model.config, "max_position_embeddings", None), self.name)
        grammar = None
        if schema := sampling.schema:
            grammar, closing = self.compile(schema), closing_tokens(schema)
            limit -= closing
            if limit <= 0:
                raise ValueError(f"max_tokens is {most}; closing the JSON of {schema.__name__} takes up to {closing}")
        shape: dict[str, Any] = dict(eos_token_id=self.end_ids, pad_token_id=self.tokenizer.pad_token_id)
        shape |= dict(do_sample=sampling.temperature > 0, max_new_tokens=most, repetition_penalty=1.0)
        if sampling.temperature > 0:
            shape |= dict(temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
        config = GenerationConfig(**shape)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        completions: dict[int, Completion] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                for number, start in enumerate(range(0, len(order), self.batch_size)):
                    rows = order[start : start + self.batch_size]
                    state = np.random.SeedSequence([sampling.seed, number]).generate_state(1, np.uint64)
                    torch.manual_seed(int(state[0]))
                    prompts = {"input_ids": [ids[row] for row in rows]}
                    batch = self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(self.model.device)
                    width = batch["input_ids"].shape[1]
                    processors = [ClosingJSON(grammar, width + limit)] if grammar else []
                    output = self.model.generate(**batch, generation_config=config, logits_processor=processors)
                    for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
                        text, count, ended = read_row(self.tokenizer, tokens, self.end_ids)
                        completions[row] = Completion(text, len(ids[row]), count, ended and count <= limit)
        finally:
            self.model.train(was_training)
        return [completions[i] for i in range(len(ids))]

    def compile(self, schema: type[BaseModel]) -> xgrammar.CompiledGrammar:
        """The schema's grammar over the model's tokens, compiled once. Raises ValueError for a tokenizer of words."""
        if schema in self.grammars:
            return self.grammars[schema]
        kind = type(self.tokenizer.backend_tokenizer.model).__name__
        if kind not in ("BPE", "Unigram"):
            raise ValueError(
                f"constrained decoding needs a subword tokenizer (BPE, Unigram), {self.name} has {kind}; set "
                "synthesis.constrained to false"
            )
        size = self.model.get_output_embeddings().weight.shape[0]
        tokens = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=size, stop_token_ids=self.end_ids)
        self.grammars[schema] = xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)
        return self.grammars[schema]


class ClosingJSON(LogitsProcessor):
    """xgrammar's constraint, which also closes the object once a row is `deadline` tokens wide (prompt included).

    A limit on the strings' characters cannot do this: a character takes from a fifth of a token to four. From the
    deadline on, a quote is written wherever the grammar allows one. It ends the open string (after the rest of an
    escape or of a character), and every later string at once, so closing takes at most `closing_tokens`.
    """

    def __init__(self, grammar: xgrammar.CompiledGrammar, deadline: int):
        super().__init__(grammar)
        self.deadline = deadline
        self.quote = grammar.tokenizer_info.decoded_vocab.index(b'"')

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = super().__call__(input_ids, scores)
        if input_ids.shape[1] >= self.deadline:
            closing = scores[:, self.quote].isfinite()
            scores[closing] = -torch.inf
            scores[closing, self.quote] = 0.0
        return scores


def closing_tokens(schema: type[BaseModel]) -> int:
    """The most tokens that closing an object of the schema can take, begun at any point of it.

    They are one for each byte of the object with empty strings, five for an escape (`\\u00e9`) that is open, and the
    end token. Raises ValueError for a schema with other fields than text.
    """
    name, fields = schema.__name__, schema.model_fields
    if other := [field for field in fields if fields[field].annotation is not str]:
        raise ValueError(f"{name} has fields {other} that are not text; constrained decoding takes text only")
    return len(json.dumps(dict.fromkeys(fields, "")).encode()) + 6
