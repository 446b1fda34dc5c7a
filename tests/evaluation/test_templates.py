"""What a model has learnt by heart it knows in the exam, whatever its chat template and tokenizer."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.exam import sit
from rubric_influence.models.chat import check_rendering, choose_template
from rubric_influence.models.examples import collate, encode
from rubric_influence.models.losses import sample_losses

# As their publishers write them, without what no question and answer needs (tools, system prompts).
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATED = "{{ bos_token }}Today Date: {{ strftime_now('%d %b %Y') }}\n" + LLAMA_3.replace("bos_token + ", "")
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Each with the kind of tokenizer that its models have.
FAMILIES = {
    "ChatML": (CHATML, "bytes"),
    "Llama 3": (LLAMA_3, "bytes"),
    "Llama 3.2": (DATED, "bytes"),
    "Llama 2": (LLAMA_2, "blanks"),
    "Mistral": (MISTRAL, "blanks"),
    "Gemma": (GEMMA, "blanks"),
    "Qwen 3": (QWEN_3, "bytes"),
    "DeepSeek R1": (DEEPSEEK_R1, "bytes"),
    "Phi 3": (PHI_3, "blanks"),
    "Zephyr": (ZEPHYR, "blanks"),
    "Vicuna": (VICUNA, "blanks"),
    "base model": (None, "bytes"),
    "base model, blanks": (None, "blanks"),
}
MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>", "<|user|>", "<|assistant|>", "<|end|>",
         "<think>", "</think>"]  # fmt: skip
# Several begin as others do: what follows an answer must count.
OPTIONS = ("iron", "iron oxide", "iron oxide dust", "1", "12", "12.5 mg", "salt", "salt and water")
FACTS = [
    ExamItem(f"What does organ {name} of the {body} make?", OPTIONS, (3 * i + 5 * j) % len(OPTIONS), "test")
    for i, name in enumerate(("alpha", "beta", "gamma", "delta", "kappa", "omega", "sigma", "theta"))
    for j, body in enumerate(("newt", "crow", "pike", "wasp"))
]


def build_tokenizer(kind: str, bos: bool, template: str | None) -> PreTrainedTokenizerFast:
    """A small BPE tokenizer: of bytes, as Llama 3 and Qwen have, or with blanks as ▁, as Llama 2 and Gemma have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "blanks", unk_token=None))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        tokenizer.decoder, alphabet = decoders.Metaspace(prepend_scheme="first"), []
    texts = [item.question for item in FACTS] + [*OPTIONS, "[INST] [/INST] USER: ASSISTANT: Question: Answer:\n"] * 8
    texts += ["user\nassistant\nmodel\nsystem Today Date: 26 Jul 2024\n\n0123456789"] * 8
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    wrapped.chat_template = template
    wrapped.chat_template = choose_template(wrapped)
    return wrapped


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_facts_learnt_by_heart_are_all_right(family, bos):
    template, kind = FAMILIES[family]
    tokenizer = build_tokenizer(kind, bos, template)
    check_rendering(tokenizer, (FACTS[0].question, FACTS[1].question), FACTS[0].answer, "{question}")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=4, attn_implementation="eager")
    )  # fmt: skip
    examples = [encode(tokenizer, item.question, item.answer) for item in FACTS]
    assert all(tokenizer.decode(e.input_ids).count("<s>") <= 1 for e in examples)
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=4e-3), collate(examples)
    for _ in range(600):
        loss = sample_losses(model, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.003:
            break
    sitting = sit(model, tokenizer, FACTS, "{question}", batch_tokens=8000)
    assert sitting.accuracy.mean() == 1.0 and sitting.option_nats.max() < 0.5


def test_a_tokenizer_that_merges_an_option_with_the_prompt_is_refused():
    tokenizer = build_tokenizer("blanks", True, CHATML)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_tokens(["\nsalt"])
    item = replace(FACTS[0], options=("iron", "salt"))
    with pytest.raises(ValueError, match=r"merges the beginning of \['salt'\] with the end of the prompt"):
        sit(None, tokenizer, [item], "{question}", batch_tokens=100)


@pytest.mark.parametrize(
    "template, problem",
    [
        (CHATML.replace("m['content']", "'...'"), "does not write the question before the answer"),
        ("{% for m in messages[:1] %}{{ m['content'] }} {% endfor %}", "does not write the answer"),
        ("{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}".replace(" + ' '", ""), "writes nothing after"),
        ("{% for m in messages | reverse %}{{ m['content'] }} </s>{% endfor %}", "does not write the question before"),
        ("{% for m in messages %}{{ m['content'] }}{{ range(10000) | random }}</s>{% endfor %}", "in two ways"),
        ("{{ raise_exception('only one turn') }}", "cannot render the turns user"),
    ],
)
def test_a_template_that_training_and_exam_cannot_share_is_refused(template, problem):
    tokenizer = build_tokenizer("bytes", True, template)
    with pytest.raises(ValueError, match=problem):
        check_rendering(tokenizer, (FACTS[0].question, FACTS[1].question), "iron", "{question}")


def test_a_template_writes_one_date_on_every_day():
    tokenizer = build_tokenizer("bytes", True, DATED)
    ids = encode(tokenizer, FACTS[0].question, "iron").input_ids
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(ids)


def test_a_base_model_reads_question_and_answer_with_its_own_first_and_last_token():
    with_bos, without = (build_tokenizer("bytes", bos, None) for bos in (True, False))
    assert without.decode(encode(without, "What?", "iron").input_ids) == "Question: What?\nAnswer: iron</s>"
    assert with_bos.decode(encode(with_bos, "What?", "iron").input_ids) == "<s>Question: What?\nAnswer: iron</s>"


def test_of_several_templates_the_default_is_taken():
    tokenizer = build_tokenizer("bytes", True, CHATML)
    tokenizer.chat_template = {"tool_use": "{{ 1 }}", "default": CHATML}
    assert choose_template(tokenizer) == CHATML
