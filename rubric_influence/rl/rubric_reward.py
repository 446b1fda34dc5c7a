"""What a rubric earns in RL: the teacher writes pairs from it, the target scores them, and their influence is rewarded.

TRL calls `RubricReward` with every generation batch. Every rubric, pair and score is a line of `trajectories.jsonl`.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import Config
from rubric_influence.core.records import Document
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Engine
from rubric_influence.models.processes import PROCESS_STRIDE, broadcast, gather_rows, open_state
from rubric_influence.rl.diagnostics import describe_batch
from rubric_influence.rl.rewards import (
    ServedDirections,
    reward_influence,
    reward_published,
    reward_random,
    reward_set_influence,
    shuffle_influence,
)
from rubric_influence.synthesis.parsing import PairOutput, parse_pair, parse_rubric
from rubric_influence.synthesis.prompts import ask_pair

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
        """The reward of every pair, [n], by the name in the profile (rubric_influence.rl.rewards)."""
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
        """Put `pairs_per_rubric` pairs into every row that has a rubric, and what they cost."""
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
            raise RunStopped(
                f"the teacher {self.teacher.name} left {len(failures)} of {len(completions)} requests of step {step} "
                f"unanswered ({failures[0]}); run again: what was answered is kept, and training goes on from its last "
                "checkpoint"
            )
        for row, completion in zip(asked, completions, strict=True):
            question, answer, problem = parse_pair(completion.text)
            # Influence is measured on these questions: a pair that repeats one is an answer leaked, not a lesson.
            problem = problem or self.score.expert_questions.find(f"{question}\n{answer}")
            if problem:
                pair = {"question": "", "answer": "", "problem": problem, "raw": completion.text}
            else:
                pair = {"question": question, "answer": answer, "problem": ""}
            used = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
            row["pairs"].append(pair | used)

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
