"""What would stop a late stage, found out from tokenizers and configs before anything is spent."""

from collections.abc import Sequence

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rubric_influence.core.checks import refuse
from rubric_influence.core.config import Config
from rubric_influence.core.records import ExamItem
from rubric_influence.evaluation.exam import encode_options
from rubric_influence.influence.layers import scored_parameters
from rubric_influence.models.chat import check_rendering, encode_pair, render
from rubric_influence.models.loading import load_settings
from rubric_influence.synthesis.prompts import ask_answer
from rubric_influence.training.fine_tuning import build_lora

TRIED = 50  # questions of which every option is rendered; for each question it would take longer than the rest


def check_target(config: Config, exam: Sequence[ExamItem], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the target cannot be trained, scored or examined as the profile says.

    `exam`: the corpus's, or empty where it is not there yet. `tokenizer`: the target's.
    """
    check_pairs_fit(config, tokenizer)
    check_exam_fits(config, exam, tokenizer)
    check_scorable(config)


def check_pairs_fit(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the longest pair that the teacher may write would be cut in training or scoring."""
    opening = render(tokenizer, ask_answer(config.prompts, ""), add_generation_prompt=True)
    needed = len(opening) + config.synthesis.max_pair_tokens
    for name, limit in (("warmup", config.warmup.max_tokens), ("finetuning", config.finetuning.max_tokens)):
        if limit < needed:
            raise ValueError(
                f"{name}.max_tokens is {limit}, but a pair may take {needed} tokens (synthesis.max_pair_tokens and "
                f"{len(opening)} for the chat template), so answers could be cut off; raise it or lower max_pair_tokens"
            )


def check_exam_fits(config: Config, exam: Sequence[ExamItem], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the template cannot carry the exam, or a question with an answer would be cut.

    Influence cuts at warmup.max_tokens; a test question with each of its options must fit the model's positions.
    """
    template, spec = config.prompts.answer, config.models.target
    if len(exam) > 1:
        check_rendering(tokenizer, (exam[0].question, exam[1].question), exam[0].answer, template)
    for item in exam[:TRIED]:
        encode_options(tokenizer, item, template)
    room = getattr(load_settings(spec), "max_position_embeddings", None)
    problems, needed = [], 0
    for item in exam:
        judged = item.split != "test"
        limit = config.warmup.max_tokens if judged else room
        answer = item.answer if judged else max(item.options or item.answers, key=len)
        size = len(encode_pair(tokenizer, item.question, answer, template)[0])
        if limit and size > limit:
            what = "warmup.max_tokens" if judged else f"positions of {spec.path}"
            problems.append(f"{item.split} question of {size} tokens ({what}: {limit}): {item.question[:60]!r}")
            needed = max(needed, size if judged else 0)
    advice = f"raise warmup.max_tokens to {needed}" if needed else "choose a target with more positions"
    refuse(f"these questions with their answers would be cut; {advice}, or take them out of the exam:", problems)


def check_scorable(config: Config) -> None:
    """Raise ValueError where influence cannot be computed over the LoRA adapter that the profile asks for.

    The target is built without memory for its weights, from its config alone.
    """
    spec = config.models.target
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_settings(spec))
    try:
        scored_parameters(get_peft_model(model, build_lora(config.lora), low_cpu_mem_usage=True))
    except ValueError as error:
        raise ValueError(f"lora.targets is {config.lora.targets!r}, on {spec.path}: {error}") from None
