"""Text engines: conversations in, completions out; the one for a live transformers model (vllm_engine.py: vLLM).

Prompts go through the tokenizer's chat template with thinking switched off where the template knows such a switch
(what is asked for is JSON at once). Only the parameters given here shape the sampling: the top-k, temperature and
penalties that a model's generation_config recommends do not apply.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xgrammar
from pydantic import BaseModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from xgrammar.contrib.hf import LogitsProcessor

from rubric_influence.engines.base import Completion, Sampling
from rubric_influence.models.chat import Conversation, check_room, encode_prompts, find_ends, read_row

if TYPE_CHECKING:
    pass


class TransformersEngine:
    """Batched sampling from a live model, read anew at each call: reinforcement learning may change it in between.

    Prompts are sorted by length, padded on the left and restored to their order; batch i draws from a generator
    seeded by (seed, i), and torch's global generators are left as they were. What is sampled depends on `batch_size`.
    The model runs in its own dtype.
    """

    independent = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, batch_size: int):
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(f"the tokenizer of {name} has {len(tokenizer)} tokens, the model {rows}: not a match")
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        self.end_ids = find_ends(tokenizer, model.generation_config.eos_token_id, name)
        self.grammars: dict[type[BaseModel], xgrammar.CompiledGrammar] = {}

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        ids = encode_prompts(self.tokenizer, conversations)
        room = getattr(self.model.config, "max_position_embeddings", None)
        check_room(ids, sampling.max_tokens, room, self.name)
        grammar, reserve = None, 0
        if schema := sampling.schema:
            grammar, reserve = self.compile(schema), closing_tokens(schema)
            if reserve >= sampling.max_tokens:
                raise ValueError(
                    f"max_tokens is {sampling.max_tokens}; closing the JSON of {schema.__name__} takes up to {reserve}"
                )
        random = sampling.temperature > 0
        config = GenerationConfig(
            do_sample=random,
            **(dict(temperature=sampling.temperature, top_p=sampling.top_p, top_k=0) if random else {}),
            repetition_penalty=1.0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self.end_ids,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        completions: dict[int, Completion] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                for batch, start in enumerate(range(0, len(order), self.batch_size)):
                    rows = order[start : start + self.batch_size]
                    torch.manual_seed(
                        int(np.random.SeedSequence([sampling.seed, batch]).generate_state(1, np.uint64)[0])
                    )
                    written = self.generate_batch([ids[i] for i in rows], config, grammar, reserve)
                    completions.update(zip(rows, written, strict=True))
        finally:
            self.model.train(was_training)
        return [completions[i] for i in range(len(ids))]

    def compile(self, schema: type[BaseModel]) -> xgrammar.CompiledGrammar:
        """The schema's grammar over the model's tokens, compiled once."""
        if schema not in self.grammars:
            kind = type(self.tokenizer.backend_tokenizer.model).__name__
            if kind not in ("BPE", "Unigram"):
                raise ValueError(
                    f"constrained decoding needs a subword tokenizer (BPE, Unigram), {self.name} has {kind}; set "
                    "synthesis.constrained to false"
                )
            size = self.model.get_output_embeddings().weight.shape[0]
            tokens = xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer, vocab_size=size, stop_token_ids=self.end_ids
            )
            self.grammars[schema] = xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)
        return self.grammars[schema]

    def generate_batch(
        self, prompts: list[list[int]], config: GenerationConfig, grammar: xgrammar.CompiledGrammar | None, reserve: int
    ) -> list[Completion]:
        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = batch.to(self.model.device)
        width = batch["input_ids"].shape[1]
        processors = [ClosingJSON(grammar, width + config.max_new_tokens - reserve)] if grammar else []
        output = self.model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=config,
            logits_processor=processors,
        )
        completions = []
        for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
            text, count, ended = read_row(self.tokenizer, row, self.end_ids)
            finished = ended and count <= config.max_new_tokens - reserve
            completions.append(Completion(text, len(prompt), count, finished))
        return completions


class ClosingJSON(LogitsProcessor):
    """xgrammar's constraint, which in addition makes the object close once a row is `deadline` tokens wide.

    A limit on the strings' characters cannot do this: a character takes anything from a fifth of a token to four.
    From the deadline on, a quote is written wherever the grammar allows one, which ends the open string (after the
    rest of an escape or of a character) and all later ones at once: at most `closing_tokens` are needed.
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
    """How many tokens closing the schema's JSON can take at most, from any point of it: one for each byte of the
    object with empty strings, five for an escape (`\\u00e9`) that is open, and the end token.

    Raises ValueError for a schema with other than text fields.
    """
    other = [name for name, field in schema.model_fields.items() if field.annotation is not str]
    if other:
        raise ValueError(
            f"{schema.__name__} has fields {other} that are not text; constrained decoding takes text only"
        )
    return len(json.dumps(dict.fromkeys(schema.model_fields, "")).encode()) + 6
