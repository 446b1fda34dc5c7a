"""The lab's models in Hugging Face format: a word-level tokenizer and a small transformer."""

import re
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rubric_influence.lab.world import LETTERS, QUESTION_TYPES, RUBRIC_WORDINGS, STYLES, Field

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"
# The words of the JSON that holds rubrics and pairs: `{"question":" ... ","answer":" ... "}` is valid JSON.
JSON_WORDS = ('{"rubric":"', '{"question":"', '","answer":"', '"}')
PROMPT_WORDS = "document rubric pair facts : ; first , recall a second consider the so write an essay . complete is"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|> {{ message['content'] }} <|end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
FAMILIES = ("qwen3", "llama")


def list_words(field: Field) -> list[str]:
    """Every word that the lab can write in a field, sorted, without the special tokens."""
    texts = [*field.entity_names, field.entity, field.registers.technical, field.registers.plain]
    texts += [*JSON_WORDS, PROMPT_WORDS, *LETTERS, *QUESTION_TYPES, *STYLES, *RUBRIC_WORDINGS]
    for topic, a in field.attributes.items():
        texts += [topic, *a.values, *a.statements, *a.technical, *a.plain, a.cloze]
    return sorted({word for text in texts for word in re.sub(r"\{\w+\}", " ", text).split()})


def build_tokenizer(field: Field) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word and the lab's chat template."""
    vocabulary = {word: index for index, word in enumerate([PAD, UNKNOWN, USER, ASSISTANT, END, *list_words(field)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token=PAD, unk_token=UNKNOWN, eos_token=END, additional_special_tokens=[USER, ASSISTANT])
    return wrap_tokenizer(tokenizer, chat_template=CHAT_TEMPLATE, model_max_length=512, **special)


def wrap_tokenizer(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


def build_model(
    tokenizer: PreTrainedTokenizerFast, family: str = "qwen3", hidden_size: int = 128, layers: int = 4
) -> PreTrainedModel:
    """A randomly initialised causal LM of a family's architecture; about 0.9M parameters at the default size.

    Weights come from torch's global generator: seed it first. Raises ValueError for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; the lab builds {list(FAMILIES)}")
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden_size // 4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")
