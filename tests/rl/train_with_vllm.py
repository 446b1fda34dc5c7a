"""GRPO with rubrics sampled by vLLM in the same process, as TRL starts it, in a process of its own.

python tests/train_with_vllm.py PROFILE.yaml FOLDER     FOLDER receives out/, the generator, and log.json
"""

import json
import sys
from pathlib import Path

import torch
from vllm.model_executor.layers import utils

from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import QAPair
from rubric_influence.core.scratch import Workplace
from rubric_influence.engines.open import open_engine
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune


def keep_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """In place of vLLM's packing of weights for CPUs, after which a layer cannot be given new ones."""
    layer.cpu_linear = torch.nn.functional.linear


def main(profile: Path, folder: Path) -> None:
    utils.dispatch_cpu_unquantized_gemm = keep_weights
    config = load_config(profile)
    corpus = build_corpus(config.corpus)
    texts = [(item.question, item.answer) for item in corpus.exam][:16]
    pairs = [QAPair(*text, document_id="", rubric_id="", teacher="world", seed=0, slot=0) for text in texts]
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0)
    fine_tune(run, pairs, Workplace(folder / "warmup", folder / "tuning"))
    teacher = open_engine(config.models.teacher, config.synthesis.batch_size)
    scorer = TargetScorer(config, folder / "warmup", corpus.exam, 0)
    place = Workplace(folder / "out", folder / "scratch")
    log = train_rubric_generator(config, corpus.documents, teacher, scorer, 0, place)
    (folder / "log.json").write_text(json.dumps(log), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
