"""A tiny target with a warmed-up checkpoint, and validation questions, for benchmarks.scale.

python -m benchmarks.scale.target FOLDER      writes FOLDER/model, FOLDER/checkpoint-1 and FOLDER/validation.jsonl

In a process of its own: what loads torch would else count towards the peak of the processes that it starts.
"""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace
from rubric_influence.lab.world import draw_choice, draw_entities, load_field, write_pair
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def make_target(folder: Path) -> None:
    config = load_config("params.yaml")
    field, rng = load_field(config.corpus.field), random.Random(0)
    entities = draw_entities(field, 16, rng)
    texts = [write_pair(field, entity, draw_choice(field, rng), rng, field.topics) for entity in entities]
    tokenizer = load_tokenizer(config.models.target)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    special = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    spec = ModelSpec(path=str(folder / "model"), dtype="float32", attention="eager")
    pairs = [QAPair(question, answer, "", "", "lab", 0, slot) for slot, (question, answer) in enumerate(texts)]
    settings = config.warmup.model_copy(update={"epochs": 1, "batch_size": 8})
    run = TuningRun(spec, config.prompts, config.lora, settings, 0)
    fine_tune(run, pairs, Workplace(folder / "tuned", folder / "scratch"))
    (folder / "tuned/checkpoint-1").rename(folder / "checkpoint-1")
    with (folder / "validation.jsonl").open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(texts):
            file.write(json.dumps({"id": number, "question": question, "answer": answer}) + "\n")


if __name__ == "__main__":
    make_target(Path(sys.argv[1]))
