"""GRPO on the rubric generator, with the influence of the pairs that its rubrics lead to as reward.

At every step the generator writes a group of rubrics for each of some documents, the teacher writes pairs from them,
the target scores the pairs by influence, and TRL's GRPOTrainer takes a step. Every rubric, pair and score is kept in
`trajectories.jsonl`. A run that is interrupted goes on from its last checkpoint, with the same result.

Processes of `accelerate launch -m rubric_influence.rl` (rubric_influence.launch) share every step: each generates its
part of the rubrics, asks its teacher and scores its part of the pairs; the main process rewards and logs the whole.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from datasets import Dataset
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from rubric_influence.config import Config, ModelSpec
from rubric_influence.diagnostics import describe_batch
from rubric_influence.distributed import PROCESS_STRIDE, broadcast, finish, gather_rows, open_state, share_batch
from rubric_influence.generation import TEMPLATE_OPTIONS, Engine, TransformersEngine
from rubric_influence.guards import WatchWindows
from rubric_influence.models import load_model, load_tokenizer
from rubric_influence.parsing import PairOutput, RubricOutput, parse_pair, parse_rubric
from rubric_influence.progress import show_progress
from rubric_influence.prompts import ask_pair, ask_rubric
from rubric_influence.quality import ContaminationIndex
from rubric_influence.records import Document
from rubric_influence.rewards import (
    ServedDirections,
    reward_influence,
    reward_published,
    reward_random,
    reward_set_influence,
    shuffle_influence,
)
from rubric_influence.sft import build_lora, find_whole_checkpoint, share_arguments

SET_LEVEL = ("set_influence", "shuffled")  # rewards that remember what was served


class Score(Protocol):
    """What scores pairs, as scoring.TargetScorer: questions and answers -> influence [pairs, directions].

    Along all validation questions first, then along groups of them, if any, then along groups of the dev questions, if
    rl.checkpoint is dev; last the guard's, which is logged and never optimised. Set-level rewards read `served`, the
    state that they start from, the choice of a checkpoint `dev_served`. `expert_questions` are those that influence is
    measured on.
    """

    served: ServedDirections
    dev_served: ServedDirections | None
    expert_questions: ContaminationIndex

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
        self.dev_directions = len(score.dev_served.weight_k) if score.dev_served else 0

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
        self.score_pairs(rows)
        step_rows = gather_rows(rows)
        rewards = broadcast(self.finish_step(step_rows, step, log_metric) if open_state().is_main_process else None)
        start = open_state().process_index * len(rows)
        return rewards[start : start + len(rows)]

    def finish_step(self, rows: list[dict], step: int, log_metric: Callable[[str, float], None]) -> list[float]:
        """The reward of every row of a step, of all processes; keeps the rows with it."""
        scores_nk, valid_n = stack_pairs(rows, self.config.rl.pairs_per_rubric)
        # Every pair is credited by itself, as a rubric's pairs may serve different directions.
        rewards = self.reward(scores_nk, valid_n, step).view(len(rows), -1).mean(dim=1).tolist()
        for row, reward in zip(rows, rewards, strict=True):
            row["reward"] = reward
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, value in describe_batch(rows, drop_dev(scores_nk, self.dev_directions), valid_n).items():
            log_metric(name, value)
        return rewards

    def reward(self, scores_nk: torch.Tensor, valid_n: torch.Tensor, step: int) -> torch.Tensor:
        """The reward of every pair, [n], by the name in the profile (rubric_influence.rewards)."""
        kind, penalty = self.config.rl.reward, self.config.rl.invalid_penalty
        all_n1, draw = scores_nk[:, :1], self.seed * 1_000_003 + step
        if kind in SET_LEVEL:
            groups_nk = select_groups(scores_nk, self.dev_directions)
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
            seed=self.seed * 1_000_003 + step + PROCESS_STRIDE * open_state().process_index,
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
            # Influence is measured on these questions: a pair that repeats one is an answer leaked, not a lesson.
            problem = problem or self.score.expert_questions.find(f"{question}\n{answer}")
            if problem:
                row["pairs"].append({"question": "", "answer": "", "problem": problem, "raw": completion.text})
            else:
                row["pairs"].append({"question": question, "answer": answer, "problem": ""})

    def score_pairs(self, rows: list[dict]) -> None:
        """Put the influence along every direction into every valid pair."""
        valid = [pair for row in rows for pair in row["pairs"] if not pair["problem"]]
        if valid:
            scores = self.score([(pair["question"], pair["answer"]) for pair in valid])
            for pair, influence in zip(valid, scores.tolist(), strict=True):
                pair["influence"] = [round(value, 6) for value in influence]

    def rewind(self, step: int) -> None:
        """Forget what was logged from `step` on, and serve again what came before: what a resumed run needs.

        The log is the main process's, and only it knows what was served.
        """
        if self.served:
            self.served = self.score.served
        if not (open_state().is_main_process and self.log.exists()):
            return
        lines = self.log.read_bytes().split(b"\n")[:-1]  # what follows the last line break was cut
        rows = [row for row in map(json.loads, lines) if row["step"] < step]
        # Steps are in order. Cut and not written anew: a kill between would lose what cannot be made again.
        os.truncate(self.log, sum(len(line) + 1 for line in lines[: len(rows)]))
        if self.served:
            for number in range(step):
                batch = [row for row in rows if row["step"] == number]
                scores_nk, valid_n = stack_pairs(batch, self.config.rl.pairs_per_rubric)
                self.served = self.served.update(select_groups(scores_nk, self.dev_directions), valid_n)

    def read_scores(self, ends: Sequence[int]) -> list[torch.Tensor]:
        """The influence of all valid pairs of each window, [pairs, directions]; a window lasts to before its end."""
        windows = None
        if open_state().is_main_process:
            rows = [json.loads(line) for line in self.log.read_bytes().splitlines()]
            windows = []
            for start, end in zip([0, *ends], ends, strict=False):
                batch = [row for row in rows if start <= row["step"] < end]
                scores_nk, valid_n = stack_pairs(batch, self.config.rl.pairs_per_rubric)
                windows.append(scores_nk[valid_n])
        return broadcast(windows)


def select_groups(scores_nk: torch.Tensor, dev_directions: int) -> torch.Tensor:
    """The directions that a set-level reward is over: topics or clusters, or where there are none all validation."""
    groups_nk = drop_dev(scores_nk, dev_directions)[:, 1:-1]
    return groups_nk if groups_nk.shape[1] else scores_nk[:, :1]


def drop_dev(scores_nk: torch.Tensor, dev_directions: int) -> torch.Tensor:
    """The scores without the dev directions, which are the last before the guard's."""
    return torch.cat([scores_nk[:, : scores_nk.shape[1] - 1 - dev_directions], scores_nk[:, -1:]], dim=1)


def stack_pairs(rows: Sequence[dict], per_rubric: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The influence of every pair that rubrics were to lead to, [n * per_rubric, directions], and if it can be used.

    Zeros where it cannot, or was never asked for.
    """
    found = [pair.get("influence") for row in rows for pair in row["pairs"] or [{}] * per_rubric]
    nothing = [0.0] * max((len(influence) for influence in found if influence), default=2)
    valid_n = torch.tensor([influence is not None for influence in found])
    return torch.tensor([influence or nothing for influence in found]), valid_n


def rollout_constrained(config: Config, seed: int) -> Callable[[list, GRPOTrainer], dict]:
    """A TRL rollout function that samples rubrics under the JSON schema, for models too small to keep to it alone."""

    def rollout(prompts: list, trainer: GRPOTrainer) -> dict:
        tokenizer = trainer.processing_class
        model = trainer.accelerator.unwrap_model(trainer.model)
        engine = TransformersEngine(model, tokenizer, "rubric generator", batch_size=len(prompts))
        completions = engine.generate(
            prompts,
            seed=seed * 1_000_003 + trainer.state.global_step + PROCESS_STRIDE * open_state().process_index,
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
    """TRL's arguments for a profile: one optimizer step for each generation batch.

    Raises ValueError for a batch that the processes cannot share.
    """
    settings = config.rl
    batch = settings.documents_per_step * settings.group_size
    at_once, accumulated = share_batch(batch, settings.micro_batch, "documents_per_step * group_size")
    vllm = {} if settings.vllm == "off" else {"use_vllm": True, "vllm_mode": settings.vllm}
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        num_generations=settings.group_size,
        steps_per_generation=accumulated,
        ddp_find_unused_parameters=False,  # every one is used
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        temperature=settings.temperature,
        beta=settings.kl,
        chat_template_kwargs=TEMPLATE_OPTIONS,
        loss_type=settings.loss,
        scale_rewards=settings.scale_rewards,
        max_completion_length=config.synthesis.max_rubric_tokens,
        logging_steps=1,
        save_steps=settings.save_every,
        save_total_limit=1,
        vllm_server_host="127.0.0.1",  # TRL's own default listens to every network
        **vllm,
        **share_arguments(seed),
    )


def load_best(spec: ModelSpec, checkpoint: str) -> torch.nn.Module:
    """The generator, or the generator with its adapter, that the trainer wrote to a checkpoint."""
    if (Path(checkpoint) / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(load_model(spec), checkpoint)
    return load_model(spec.model_copy(update={"path": checkpoint, "revision": None}))


def train_rubric_generator(
    config: Config,
    documents: Sequence[Document],
    teacher: Engine,
    score: Score,
    seed: int,
    out: str | Path,
    scratch: str | Path,
    keep: bool = False,
) -> list[dict]:
    """Optimise the rubric generator; returns TRL's log, one row a step.

    The generator is the last, or the best by dev questions (rl.checkpoint); a run whose guard diverges ends early
    (rubric_influence.guards), and the log says so. `out` receives it (with rl.lora, merged) with its tokenizer, and
    `trajectories.jsonl`: step, document, rubric, pairs with influence by direction (the last is the guard's), reward.
    With `keep`, what is finished stays in `scratch`, and the next call delivers it and removes it.
    Raises ValueError if the processes cannot share a step.
    """

    def train(work: Path) -> list[dict]:
        return train_in(work, config, documents, teacher, score, seed)

    return finish(train, "generator", out, scratch, keep)


def train_in(
    work: Path, config: Config, documents: Sequence[Document], teacher: Engine, score: Score, seed: int
) -> list[dict]:
    """Train to the end, or go on to it; work/generator then holds what `train_rubric_generator` delivers."""
    spec = config.models.rubric_generator
    arguments = build_arguments(config, seed, str(work / "trainer"))
    tokenizer = load_tokenizer(spec)
    work.mkdir(parents=True, exist_ok=True)
    reward = RubricReward(config, documents, teacher, score, seed, work / "trajectories.jsonl")
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
    if trainer.is_fsdp_enabled and config.rl.lora:
        raise ValueError("rl.lora cannot be merged where FSDP shares the weights; use DDP, or set rl.lora to null")
    trainer.add_callback(WatchWindows(reward.read_scores, broadcast(score.dev_served)))
    show_progress(trainer, f"GRPO, seed {seed}", "reward", "influence", "guard_influence", "valid")
    trainer.train(resume_from_checkpoint=last)
    model, weights = trainer.accelerator.unwrap_model(trainer.model), None
    if best := trainer.state.best_model_checkpoint:  # rl.checkpoint is dev
        trainer.state.log_history.append({"step": trainer.state.best_global_step, "kept": Path(best).name})
        model = load_best(spec, best)
    elif trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model)  # every process has but a part of them
    if open_state().is_main_process:
        if config.rl.lora:
            model = model.merge_and_unload()
        finished = work / "generator"
        model.save_pretrained(finished, safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(finished)
        shutil.copy(reward.log, finished / "trajectories.jsonl")
    return trainer.state.log_history


if __name__ == "__main__":
    # Not by an import statement: all stages that use this module would depend on all that can be launched.
    sys.exit(import_module("rubric_influence.launch").main(["generators"]))
