"""GRPO on the rubric generator, with the influence of the pairs that its rubrics lead to as reward.

At every step the generator writes a group of rubrics for each of some documents, the teacher writes pairs from them,
the target scores the pairs by influence, and TRL's GRPOTrainer takes a step. Every rubric, pair and score is kept in
`trajectories.jsonl`. A run that is interrupted goes on from its last checkpoint, with the same result.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rubric_influence.config import Config
from rubric_influence.diagnostics import describe_batch
from rubric_influence.generation import TEMPLATE_OPTIONS, Engine, TransformersEngine
from rubric_influence.journal import deliver, discard
from rubric_influence.models import load_model, load_tokenizer
from rubric_influence.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.progress import show_progress
from rubric_influence.prompts import ask_pair, ask_rubric
from rubric_influence.records import Document
from rubric_influence.rewards import (
    ServedDirections,
    reward_influence,
    reward_published,
    reward_random,
    reward_set_influence,
    shuffle_influence,
)
from rubric_influence.sft import build_lora, find_whole_checkpoint

SET_LEVEL = ("set_influence", "shuffled")  # rewards that remember what was served


class Score(Protocol):
    """What scores pairs, as scoring.TargetScorer: questions and answers -> influence [pairs, directions].

    Along all validation questions first, then along groups of them, if any; last the guard's, which is logged and never
    optimised. Set-level rewards read `served`, the state that they start from.
    """

    served: ServedDirections

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor: ...


class RubricReward:
    """The reward function that TRL calls with every generation batch. Keeps the trajectories as it goes."""

    __name__ = "rubric_reward"

    def __init__(
        self, config: Config, documents: Sequence[Document], teacher: Engine, score: Score, seed: int, log: Path
    ):
        self.config, self.teacher, self.score, self.seed, self.log = config, teacher, score, seed, log
        self.documents = {document.id: document for document in documents}
        self.served = score.served if config.rl.reward in SET_LEVEL else None

    def __call__(self, completions: list, document_id: list[str], trainer_state, log_metric, **_) -> list[float]:
        step = trainer_state.global_step
        rows = []
        for document, completion in zip(document_id, completions, strict=True):
            written = completion[0]["content"]
            rubric, problem = parse_rubric(written)
            # The text as it was written where it cannot be used: what was parsed may hold what UTF-8 cannot.
            text = written if problem else rubric
            rows.append({"step": step, "document_id": document, "rubric": text, "problem": problem, "pairs": []})
        self.ask_teacher(rows, step)
        scores_nk, valid_n = self.score_rows(rows)
        rewards = self.reward(scores_nk, valid_n, step).tolist()
        for row, reward in zip(rows, rewards, strict=True):
            row["reward"] = reward
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, value in describe_batch(rows, scores_nk, valid_n).items():
            log_metric(name, value)
        return rewards

    def reward(self, scores_nk: torch.Tensor, valid_n: torch.Tensor, step: int) -> torch.Tensor:
        """The reward of every row, [n], by the name in the profile (rubric_influence.rewards)."""
        kind, penalty = self.config.rl.reward, self.config.rl.invalid_penalty
        all_n1, draw = scores_nk[:, :1], self.seed * 1_000_003 + step
        if kind in SET_LEVEL:
            groups_nk = select_groups(scores_nk)
            if kind == "shuffled":
                groups_nk = shuffle_influence(groups_nk, valid_n, draw)
            reward_n, self.served = reward_set_influence(groups_nk, valid_n, self.served, penalty)
            return reward_n
        if kind == "published":
            return reward_published(all_n1, valid_n)
        if kind == "random":
            return reward_random(valid_n, penalty, draw)
        return reward_influence(all_n1, valid_n, penalty)

    def ask_teacher(self, rows: list[dict], step: int) -> None:
        """Put `pairs_per_rubric` pairs into every row that has a rubric."""
        settings, prompts = self.config.synthesis, self.config.prompts
        asked = [row for row in rows if not row["problem"] for _ in range(self.config.rl.pairs_per_rubric)]
        conversations = [ask_pair(prompts, self.documents[row["document_id"]].text, row["rubric"]) for row in asked]
        completions = self.teacher.generate(
            conversations,
            seed=self.seed * 1_000_003 + step,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_pair_tokens,
            schema=PairOutput if settings.constrained else None,
        )
        if failures := [completion.failure for completion in completions if completion.failure]:
            # No fault of the rubric's: a penalty would teach it nothing, and leaving it out would bias its group.
            raise RuntimeError(
                f"the teacher {self.teacher.name} left {len(failures)} of {len(completions)} requests of step {step} "
                f"unanswered ({failures[0]}); run again: what was answered is kept, and training goes on from its last "
                "checkpoint"
            )
        for row, completion in zip(asked, completions, strict=True):
            question, answer, problem = parse_pair(completion.text)
            if problem:
                row["pairs"].append({"question": "", "answer": "", "problem": problem, "raw": completion.text})
            else:
                row["pairs"].append({"question": question, "answer": answer, "problem": ""})

    def score_rows(self, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores [n, directions] of every row, the mean of its valid pairs', and whether it has any, [n]."""
        valid = [pair for row in rows for pair in row["pairs"] if not pair["problem"]]
        if valid:
            scores = self.score([(pair["question"], pair["answer"]) for pair in valid])
            for pair, influence in zip(valid, scores.tolist(), strict=True):
                pair["influence"] = [round(value, 6) for value in influence]
        means = [average_influence(row) for row in rows]
        nothing = torch.zeros(scores.shape[1] if valid else 2)
        mean_nk = torch.stack([nothing if mean is None else mean for mean in means])
        return mean_nk, torch.tensor([mean is not None for mean in means])

    def rewind(self, step: int) -> None:
        """Forget what was logged from `step` on, and serve again what came before: what a resumed run needs."""
        if self.served:
            self.served = self.score.served
        if not self.log.exists():
            return
        lines = self.log.read_bytes().split(b"\n")[:-1]  # what follows the last line break was cut
        rows = [row for row in map(json.loads, lines) if row["step"] < step]
        # Steps are in order. Cut and not written anew: a kill between would lose what cannot be made again.
        os.truncate(self.log, sum(len(line) + 1 for line in lines[: len(rows)]))
        if self.served:
            for number in range(step):
                means = [average_influence(row) for row in rows if row["step"] == number]
                if valid := [mean for mean in means if mean is not None]:
                    groups_nk = select_groups(torch.stack(valid))
                    self.served = self.served.update(groups_nk, torch.ones(len(valid), dtype=torch.bool))


def select_groups(scores_nk: torch.Tensor) -> torch.Tensor:
    """The directions that a set-level reward is over: topics or clusters, or where there are none all validation."""
    return scores_nk[:, 1:-1] if scores_nk.shape[1] > 2 else scores_nk[:, :1]


def average_influence(row: dict) -> torch.Tensor | None:
    """The mean of a trajectory's valid pairs by direction; None if it has none."""
    scores = [pair["influence"] for pair in row["pairs"] if not pair["problem"]]
    return torch.tensor(scores).mean(dim=0) if scores else None


def rollout_constrained(config: Config, seed: int) -> Callable[[list, GRPOTrainer], dict]:
    """A TRL rollout function that samples rubrics under the JSON schema, for models too small to keep to it alone."""

    def rollout(prompts: list, trainer: GRPOTrainer) -> dict:
        tokenizer = trainer.processing_class
        model = trainer.accelerator.unwrap_model(trainer.model)
        engine = TransformersEngine(model, tokenizer, "rubric generator", batch_size=len(prompts))
        completions = engine.generate(
            prompts,
            seed=seed * 1_000_003 + trainer.state.global_step,
            temperature=config.rl.temperature,
            top_p=1.0,
            max_tokens=config.synthesis.max_rubric_tokens,
            schema=RubricOutput,
        )
        asked = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, **TEMPLATE_OPTIONS)
        written = [
            tokenizer(c.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for c in completions
        ]
        return {"prompt_ids": asked["input_ids"], "completion_ids": written, "logprobs": None}

    return rollout


def build_arguments(config: Config, seed: int, folder: str) -> GRPOConfig:
    """TRL's arguments for a profile: one optimizer step for each generation batch."""
    settings = config.rl
    gpu = torch.cuda.is_available()
    batch = settings.documents_per_step * settings.group_size
    accumulated = batch // (settings.micro_batch or batch)
    vllm = {} if settings.vllm == "off" else {"use_vllm": True, "vllm_mode": settings.vllm}
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=batch // accumulated,
        gradient_accumulation_steps=accumulated,
        num_generations=settings.group_size,
        steps_per_generation=accumulated,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        temperature=settings.temperature,
        beta=settings.kl,
        chat_template_kwargs=TEMPLATE_OPTIONS,
        loss_type=settings.loss,
        scale_rewards=settings.scale_rewards,
        max_completion_length=config.synthesis.max_rubric_tokens,
        bf16=gpu,
        gradient_checkpointing=gpu,
        use_cpu=not gpu,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_steps=settings.save_every,
        save_total_limit=1,
        vllm_server_host="127.0.0.1",  # TRL's own default listens to every network
        **vllm,
    )


def train_rubric_generator(
    config: Config,
    documents: Sequence[Document],
    teacher: Engine,
    score: Score,
    seed: int,
    out: str | Path,
    scratch: str | Path,
) -> list[dict]:
    """Optimise the rubric generator; returns TRL's log, one row a step.

    `out` receives the generator (model or, with rl.lora, the merged model) with its tokenizer, and
    `trajectories.jsonl`: step, document, rubric, pairs with influence by direction (the last is the guard's), reward.
    """
    scratch, out = Path(scratch), Path(out)
    spec = config.models.rubric_generator
    tokenizer = load_tokenizer(spec)
    reward = RubricReward(config, documents, teacher, score, seed, scratch / "trajectories.jsonl")
    arguments = build_arguments(config, seed, str(scratch / "trainer"))
    last = find_whole_checkpoint(arguments.output_dir)
    reward.rewind(int(last.rpartition("-")[2]) if last else 0)
    rows = [{"prompt": ask_rubric(config.prompts, document.text), "document_id": document.id} for document in documents]
    trainer = GRPOTrainer(
        load_model(spec),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=build_lora(config.rl.lora) if config.rl.lora else None,
        rollout_func=rollout_constrained(config, seed) if config.synthesis.constrained else None,
    )
    show_progress(trainer, f"GRPO, seed {seed}", "reward", "influence", "guard_influence", "valid")
    trainer.train(resume_from_checkpoint=last)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.rl.lora:
        model = model.merge_and_unload()
    finished = scratch / "generator"
    model.save_pretrained(finished, safe_serialization=True)
    tokenizer.save_pretrained(finished)
    shutil.copy(reward.log, finished / "trajectories.jsonl")
    deliver(finished, out)
    discard(scratch)
    return trainer.state.log_history
