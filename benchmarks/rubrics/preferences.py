"""DPO on preferences by influence, for the rubric generator: Montessori-Instruct's recipe in GRPO's place.

Li et al. 2025 (arXiv 2410.14208): a generator writes several texts a prompt, each is scored by what it does to the
student's loss on a reference set, those that help are preferred to those that harm, and DPO trains the generator on
the preferences; then once more with the trained generator. Here a prompt is a document, a text a rubric, and its score
that of the pair that it leads to. As there, a round begins from the last round's generator, which is also DPO's
reference, and has rubrics of that generator.

Departures. A group's best rubric is preferred to its worst, its second best to its second worst, and so on: their code
(construct_dpo_dataset) pairs all of positive with all of negative influence, several times the work for the same texts,
and leaves out a document whose rubrics all help. Influence is the first-order effect of a step on the pair, not the
measured one: the same score that GRPO has. Teacher calls are as many as GRPO makes, and about as many optimizer steps
in each round. The learning rate is GRPO's, the only one that was tried with these preferences: with 1e-4, every better
paired with every worse and 64 a batch, accuracy was a point and a half lower on one seed of medicine/qwen3, which is
less than seeds differ. The paper's is 1e-6, for models thousands of times as large.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rubric_influence.core.config import Config
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import Document
from rubric_influence.core.scratch import Workplace, deliver, discard
from rubric_influence.core.seeds import seed_step
from rubric_influence.engines.base import Engine, Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.models.chat import TEMPLATE_OPTIONS
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.progress import show_progress
from rubric_influence.rl.rubric_reward import RubricReward, Score
from rubric_influence.synthesis.prompts import ask_rubric
from rubric_influence.training.fine_tuning import share_arguments


@dataclass(frozen=True)
class Settings:
    rounds: int = 2  # as the paper: preferences of the untrained generator, then of the trained one
    beta: float = 0.1  # as the paper
    learning_rate: float = 4e-4  # constant
    batch_size: int = 16  # preferences


DEFAULTS = Settings()


def prefer(rewards: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) places of a group: its best and worst, second best and second worst, and so on.

    Ties are left out, and so is the middle of a group of odd size. Equal rewards are in the order of their places.
    """
    order = sorted(range(len(rewards)), key=lambda place: rewards[place])
    matched = [(order[-1 - rank], order[rank]) for rank in range(len(order) // 2)]
    return [(better, worse) for better, worse in matched if rewards[better] > rewards[worse]]


def train_by_preferences(
    config: Config,
    documents: Sequence[Document],
    teacher: Engine,
    score: Score,
    seed: int,
    place: Workplace,
    settings: Settings = DEFAULTS,
) -> None:
    """As rl.train_rubric_generator: place.out receives the generator and trajectories.jsonl, a row a teacher call.

    A round is steps / rounds batches of documents_per_step documents, group_size rubrics each, and rl.reward ranks a
    group. An interrupted run goes on from its last whole round.
    """
    scratch = place.scratch
    rl, spec, rounds = config.rl, config.models.rubric_generator, min(settings.rounds, config.rl.steps)
    reward = RubricReward(config, documents, teacher, score, seed, scratch / "trajectories.jsonl")
    ends = [rl.steps * (number + 1) // rounds for number in range(rounds)]
    finished = [number for number in range(rounds) if (scratch / f"round-{number}").is_dir()]
    start = finished[-1] + 1 if finished else 0
    reward.rewind(ends[start - 1] if start else 0)
    order = np.random.default_rng(seed)
    dealt = [order.permutation(len(documents)) for _ in range(-(-rl.steps * rl.documents_per_step // len(documents)))]
    places = np.concatenate(dealt)
    for number in range(start, rounds):
        begun = spec if number == 0 else spec.model_copy(update={"path": str(scratch / f"round-{number - 1}")})
        generator = open_engine(begun, config.synthesis.batch_size)
        preferences: list[dict] = []
        for step in range(ends[number - 1] if number else 0, ends[number]):
            chosen = places[step * rl.documents_per_step : (step + 1) * rl.documents_per_step]
            preferences += collect(config, [documents[place] for place in chosen], generator, reward, seed, step)
        tune(begun, preferences, settings, seed, scratch / f"round-{number}", scratch / "trainer")
    last = scratch / f"round-{rounds - 1}"
    shutil.copy(reward.log, last / "trajectories.jsonl")
    deliver(last, place.out)
    discard(scratch)


def collect(
    config: Config, documents: Sequence[Document], generator: Engine, reward: RubricReward, seed: int, step: int
) -> list[dict]:
    """The preferences of one batch of documents, with all that was written kept in the reward's log."""
    size = config.rl.group_size
    asked = [ask_rubric(config.prompts, document.text) for document in documents for _ in range(size)]
    sampling = Sampling(seed_step(seed, step), config.synthesis.max_rubric_tokens, config.rl.temperature)
    written = [c.text for c in generator.generate(asked, sampling)]
    rewards = reward(
        [[{"content": text}] for text in written],
        document_id=[document.id for document in documents for _ in range(size)],
        trainer_state=SimpleNamespace(global_step=step),
        log_metric=lambda name, value: None,
    )
    return [
        {
            "prompt": asked[first],
            "chosen": [{"role": "assistant", "content": written[first + better]}],
            "rejected": [{"role": "assistant", "content": written[first + worse]}],
            "chat_template_kwargs": TEMPLATE_OPTIONS,
        }
        for first in range(0, len(written), size)
        for better, worse in prefer(rewards[first : first + size])
        if written[first + better] != written[first + worse]
    ]


def tune(spec: ModelSpec, preferences: list[dict], settings: Settings, seed: int, out: Path, scratch: Path) -> None:
    """One epoch of DPO from the generator that `spec` names, with that generator as reference.

    Raises ValueError if there are no preferences.
    """
    if not preferences:
        raise ValueError("no document has two rubrics of different reward: DPO has nothing to learn from")
    tokenizer = load_tokenizer(spec)
    tokenizer.padding_side = "right"
    arguments = DPOConfig(
        output_dir=str(scratch),
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        beta=settings.beta,
        logging_steps=1,
        save_strategy="no",
        **share_arguments(seed),
    )
    trainer = DPOTrainer(
        load_model(spec),
        ref_model=load_model(spec),
        args=arguments,
        train_dataset=Dataset.from_list(preferences),
        processing_class=tokenizer,
    )
    show_progress(trainer, f"DPO, seed {seed}, {len(preferences)} preferences", "loss", "rewards/accuracies")
    trainer.train()
    shutil.rmtree(scratch, ignore_errors=True)
    finished = out.with_name(f"{out.name}.finished")
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(finished, safe_serialization=True)
    tokenizer.save_pretrained(finished)
    (finished / "log.json").write_text(json.dumps(trainer.state.log_history) + "\n", encoding="utf-8")
    finished.rename(out)
