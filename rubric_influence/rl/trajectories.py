"""What a run of RL wrote and was told: rubrics, the pairs that they led to, scores and rewards, in trajectories.jsonl.

A line is a rubric of a step, with its pairs. An invalid rubric or pair is kept as it was written, with its problem.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rubric_influence.core.records import QAPair, Rubric
from rubric_influence.rl.scores import Directions, Scores

DECIMALS = 6  # of a logged influence, which is the one that is rewarded, so that a resumed run goes on the same


@dataclass
class TaughtPair:
    """A pair that the teacher wrote in RL, what it cost, and its influence by direction (None: it cannot be used)."""

    pair: QAPair
    prompt_tokens: int
    completion_tokens: int
    influence: list[float] | None = None

    def to_row(self) -> dict:
        pair = self.pair
        return {
            **{"question": pair.question, "answer": pair.answer, "problem": pair.problem},
            **({"raw": pair.raw} if pair.problem else {}),
            **{"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            **({} if self.influence is None else {"influence": self.influence}),
        }


@dataclass
class Trajectory:
    """One rubric of a step, the pairs that it led to, and its reward."""

    step: int
    rubric: Rubric
    pairs: list[TaughtPair] = field(default_factory=list)
    reward: float = 0.0

    def to_row(self) -> dict:
        return {
            "step": self.step,
            "document_id": self.rubric.document_id,
            "rubric": self.rubric.raw if self.rubric.problem else self.rubric.text,
            "problem": self.rubric.problem,
            "pairs": [taught.to_row() for taught in self.pairs],
            "reward": self.reward,
        }


def read_trajectory(row: dict) -> Trajectory:
    """The trajectory of a logged line. The log does not name authors and seeds: they are "" and 0 here."""
    text, problem, document_id = row["rubric"], row["problem"], row["document_id"]
    kept, raw = ("", text) if problem else (text, "")
    rubric = Rubric(kept, document_id, author="", seed=0, slot=0, problem=problem, raw=raw)
    pairs = []
    for slot, found in enumerate(row["pairs"]):
        asked, told = (found["question"], found["answer"]), (found["problem"], found.get("raw", ""))
        pair = QAPair(*asked, document_id, rubric.id, "", 0, slot, *told)
        pairs.append(TaughtPair(pair, found["prompt_tokens"], found["completion_tokens"], found.get("influence")))
    return Trajectory(row["step"], rubric, pairs, row["reward"])


def append_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(trajectory.to_row(), ensure_ascii=False) + "\n" for trajectory in trajectories)


def read_trajectories(path: Path) -> list[Trajectory]:
    """All that a log holds, in order; a last line that a kill cut short is left out."""
    return [read_trajectory(json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]


def cut_trajectories(path: Path, step: int) -> list[Trajectory]:
    """Take out of a log what it holds from `step` on; returns what came before.

    Steps are in order. The file is cut and not written anew: a kill between would lose what cannot be made again.
    """
    kept, size = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        trajectory = read_trajectory(json.loads(line))
        if trajectory.step >= step:
            break
        kept.append(trajectory)
        size += len(line) + 1
    os.truncate(path, size)
    return kept


def stack_influence(
    trajectories: Sequence[Trajectory], per_rubric: int, directions: Directions
) -> tuple[Scores, torch.Tensor]:
    """The influence of every pair that rubrics were to lead to, n = rubrics * per_rubric, and which can be used, [n].

    Zeros where a pair cannot be used, or was never asked for.
    """
    nothing = [0.0] * len(directions.names)
    found = [
        influence
        for trajectory in trajectories
        for influence in [taught.influence for taught in trajectory.pairs] or [None] * per_rubric
    ]
    valid_n = torch.tensor([influence is not None for influence in found], dtype=torch.bool)
    return directions.split_rows([nothing if influence is None else influence for influence in found]), valid_n
