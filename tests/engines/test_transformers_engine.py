import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.engines.transformers_engine import TransformersEngine, closing_tokens
from rubric_influence.lab.networks import CHAT_TEMPLATE, build_model, build_tokenizer
from rubric_influence.lab.world import load_field
from rubric_influence.models.loading import load_model
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SAMPLING = Sampling(seed=3, max_tokens=8)


def ask(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


QUESTIONS = ask("the dose", "a", "consider the dose of a", "write an essay . the dose", "first , a", "second")


@pytest.fixture(scope="module")
def lab():
    tokenizer = build_tokenizer(load_field("data/lab/fields/medicine.yaml"))
    torch.manual_seed(0)
    return build_model(tokenizer, hidden_size=16, layers=2).eval(), tokenizer


@pytest.fixture(scope="module")
def subword():
    """A random model over a byte-level BPE of all 256 bytes and a few merges, its outputs as wild as bytes can be."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["What is the question?", 'The answer is "5 mg", says the rubric.'], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template, fast.model_max_length = CHAT_TEMPLATE, 512
    torch.manual_seed(0)
    return build_model(fast, hidden_size=16, layers=1).eval(), fast


def favour(model, tokenizer, end_bias: float):
    """The model with its end token's logit moved by `end_bias`, so that rows end at different steps."""

    def shift(module, args, output):
        output[..., tokenizer.eos_token_id] += end_bias
        return output

    return model.get_output_embeddings().register_forward_hook(shift)


def test_greedy_text_is_that_of_an_unbatched_loop_without_cache(lab):
    model, tokenizer = lab
    found = TransformersEngine(model, tokenizer, "tiny", batch_size=4).generate(
        QUESTIONS, Sampling(0, 8, temperature=0.0)
    )
    for conversation, completion in zip(QUESTIONS, found, strict=True):
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        ids = prompt = tokenizer(text, return_tensors="pt")["input_ids"]
        while ids.shape[1] < prompt.shape[1] + 8 and ids[0, -1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        written = ids[0, prompt.shape[1] :]
        assert completion.text == tokenizer.decode(written, skip_special_tokens=True)
        assert (completion.prompt_tokens, completion.completion_tokens) == (prompt.shape[1], len(written))


def test_a_seed_gives_the_same_text_and_leaves_the_global_generator_alone(lab):
    engine = TransformersEngine(*lab, "tiny", batch_size=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = engine.generate(QUESTIONS, SAMPLING)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert engine.generate(QUESTIONS, SAMPLING) == first
    assert engine.generate(QUESTIONS, replace(SAMPLING, seed=4)) != first


def test_batches_of_the_same_prompt_draw_differently(lab):
    one, two = TransformersEngine(*lab, "tiny", batch_size=1).generate(ask("a", "a"), SAMPLING)
    assert one.text != two.text


def test_finished_says_whether_the_row_ended_before_the_limit(lab):
    hook = favour(*lab, end_bias=2.0)
    try:
        found = TransformersEngine(*lab, "tiny", batch_size=64).generate(ask("a") * 64, SAMPLING)
    finally:
        hook.remove()
    assert {c.finished for c in found} == {True, False}
    for completion in found:
        words = len(completion.text.split())
        assert "<|end|>" not in completion.text
        # The end token counts; other special tokens are counted and not shown.
        assert completion.completion_tokens >= words + completion.finished
        assert completion.finished or completion.completion_tokens == 8


def test_the_models_own_sampling_advice_does_not_apply(lab):
    model, tokenizer = lab
    engine = TransformersEngine(model, tokenizer, "tiny", batch_size=8)
    found = engine.generate(QUESTIONS, SAMPLING)
    advice = dict(top_k=1, repetition_penalty=5.0, temperature=0.1)
    kept = {name: getattr(model.generation_config, name) for name in advice}
    try:
        model.generation_config.update(**advice)
        assert engine.generate(QUESTIONS, SAMPLING) == found
    finally:
        model.generation_config.update(**kept)


def test_a_model_in_training_samples_as_in_evaluation_and_stays_in_training(lab):
    model, tokenizer = lab
    engine = TransformersEngine(model, tokenizer, "tiny", batch_size=4)
    found = engine.generate(QUESTIONS, SAMPLING)
    model.config.attention_dropout = 0.5
    model.train()
    try:
        assert engine.generate(QUESTIONS, SAMPLING) == found
        assert model.training
    finally:
        model.config.attention_dropout = 0.0
        model.eval()


def test_a_change_of_the_live_model_shows_in_the_next_call(lab):
    model, tokenizer = lab
    engine = TransformersEngine(model, tokenizer, "tiny", batch_size=4)
    hook = favour(model, tokenizer, end_bias=100.0)
    try:
        found = engine.generate(QUESTIONS, SAMPLING)
    finally:
        hook.remove()
    assert {(c.text, c.completion_tokens, c.finished) for c in found} == {("", 1, True)}
    assert engine.generate(QUESTIONS, SAMPLING) != found


def test_nothing_is_asked_of_an_empty_list(lab):
    assert TransformersEngine(*lab, "tiny", batch_size=4).generate([], SAMPLING) == []


@pytest.mark.parametrize("schema", [RubricOutput, PairOutput])
@pytest.mark.parametrize("extra", [1, 20, 60])
def test_constrained_text_of_a_random_model_always_parses(subword, schema, extra):
    engine = TransformersEngine(*subword, "wild", batch_size=50)
    limit = closing_tokens(schema) + extra
    found = engine.generate(ask("a") * 100, Sampling(extra, limit, 1.5, schema=schema))
    for completion in found:
        assert list(json.loads(completion.text)) == list(schema.model_fields)
        assert completion.completion_tokens <= limit
    if extra >= 20:  # strings were begun, and cut anywhere: inside escapes and multi-byte characters too
        assert len({c.text for c in found}) > 50
    assert not all(c.finished for c in found)


def test_constrained_text_that_ends_by_itself_is_finished(subword):
    model, tokenizer = subword
    quote = tokenizer.convert_tokens_to_ids('"')

    def end_strings(module, args, output):
        output[..., quote] += 5.0
        return output

    hook = model.get_output_embeddings().register_forward_hook(end_strings)
    try:
        found = TransformersEngine(model, tokenizer, "wild", batch_size=20).generate(
            ask("a") * 20, Sampling(0, 120, schema=RubricOutput)
        )
    finally:
        hook.remove()
    assert all(c.finished for c in found)
    assert any(json.loads(c.text)["rubric"] for c in found)


def test_a_grammar_is_compiled_once(subword):
    engine = TransformersEngine(*subword, "wild", batch_size=2)
    assert engine.compile(PairOutput) is engine.compile(PairOutput)
    assert engine.compile(PairOutput) is not engine.compile(RubricOutput)


def test_closing_tokens_count_the_bytes_of_the_empty_object():
    assert closing_tokens(RubricOutput) == len('{"rubric": ""}') + 5 + 1


def test_what_cannot_be_constrained_is_refused(lab, subword):
    class Graded(BaseModel):
        score: int

    with pytest.raises(ValueError, match="needs a subword tokenizer .* has WordLevel"):
        TransformersEngine(*lab, "tiny", batch_size=1).generate(ask("a"), replace(SAMPLING, schema=PairOutput))
    engine = TransformersEngine(*subword, "wild", batch_size=1)
    with pytest.raises(ValueError, match=r"\['score'\] that are not text"):
        engine.generate(ask("a"), replace(SAMPLING, schema=Graded))
    with pytest.raises(ValueError, match="max_tokens is 8; closing the JSON of PairOutput takes up to"):
        engine.generate(ask("a"), replace(SAMPLING, schema=PairOutput))


def test_a_prompt_without_room_for_the_completion_is_refused(lab):
    with pytest.raises(ValueError, match="a prompt of 507 tokens and max_tokens 8 exceed the 512 positions of tiny"):
        TransformersEngine(*lab, "tiny", batch_size=1).generate(ask("a " * 504), SAMPLING)


def test_a_tokenizer_of_another_model_is_refused(lab, subword):
    with pytest.raises(ValueError, match="not a match"):
        TransformersEngine(subword[0], lab[1], "mixed", batch_size=1)


def test_a_saved_model_opens_as_an_engine(lab, tmp_path):
    for part in lab:
        part.save_pretrained(tmp_path)
    spec = ModelSpec(path=str(tmp_path), dtype="float32", attention="eager")
    engine = open_engine(spec, batch_size=4, device="cpu")
    assert engine.name == str(tmp_path)
    live = TransformersEngine(*lab, "tiny", batch_size=4)
    assert engine.generate(QUESTIONS, SAMPLING) == live.generate(QUESTIONS, SAMPLING)


def test_an_adapter_speaks_through_the_engine_under_a_name_of_its_own(lab, write_adapter, tmp_path):
    for part in lab:
        part.save_pretrained(tmp_path / "model")
    adapter = write_adapter(tmp_path / "model", tmp_path / "adapter")
    spec = ModelSpec(path=str(tmp_path / "model"), dtype="float32", attention="eager")
    adapted = spec.model_copy(update={"adapter": str(adapter)})
    engine = open_engine(adapted, batch_size=4, device="cpu")
    found = engine.generate(QUESTIONS, SAMPLING)
    assert found != open_engine(spec, batch_size=4, device="cpu").generate(QUESTIONS, SAMPLING)
    merged = TransformersEngine(load_model(adapted, "cpu"), lab[1], "merged", batch_size=4)
    assert found == merged.generate(QUESTIONS, SAMPLING)
    assert engine.name.startswith(f"{spec.path}+{adapter}@")


@pytest.mark.skipif(HAS_VLLM, reason="vllm is installed here")
def test_without_vllm_the_fix_is_named():
    with pytest.raises(ImportError, match=r"pip install .\[vllm\].*engine: transformers"):
        open_engine(ModelSpec(path="any/model", engine="vllm"), batch_size=1)
