"""What a rubric earns in RL: the teacher writes pairs from it, the target scores them, and their influence is rewarded.

TRL calls `RubricReward` with every generation batch. Every rubric, pair and score is a line of `trajectories.jsonl`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerState

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import Config
from rubric_influence.core.records import Document, QAPair
from rubric_influence.core.seeds import seed_step
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Completion, Engine, name_model
from rubric_influence.models.embedders import load_embedder
from rubric_influence.models.processes import broadcast, gather_rows, open_state
from rubric_influence.rl import rewards
from rubric_influence.rl.diagnostics import describe_batch
from rubric_influence.rl.scores import Directions, Scores, stack_scores
from rubric_influence.rl.trajectories import (
    DECIMALS,
    TaughtPair,
    Trajectory,
    append_trajectories,
    cut_trajectories,
    read_trajectories,
    stack_influence,
)
from rubric_influence.synthesis.screening import ALONE, Screen, remove_flagged
from rubric_influence.synthesis.writing import PairTask, ask_for_pairs, read_pair, read_rubric, sample_pairs

LogMetric = Callable[[str, float], None]
MOST_BARREN = 3  # steps
SET_LEVEL = ("set_influence", "shuffled")  # rewards that remember what was served


class Score(Protocol):
    """What scores pairs, as scoring.TargetScorer does.

    Set-level rewards start from the state `served`, the choice of a checkpoint from `dev_served`. `expert_questions`
    are those that influence is measured on.
    """

    directions: Directions
    served: rewards.ServedDirections
    dev_served: rewards.ServedDirections | None
    expert_questions: ContaminationIndex

    def __call__(self, pairs: Sequence[QAPair]) -> Scores: ...


class RubricReward:
    """The reward function that TRL calls with every generation batch. Keeps the trajectories as it goes."""

    __name__ = "rubric_reward"

    def __init__(
        self, config: Config, documents: Sequence[Document], teacher: Engine, score: Score, seed: int, log: Path
    ):
        self.config, self.teacher, self.score, self.seed, self.log = config, teacher, score, seed, log
        self.documents = {document.id: document for document in documents}
        self.author = name_model(config.models.rubric_generator)
        self.served = score.served if config.rl.reward in SET_LEVEL else None
        self.checks = [check for check in config.quality.remove if check in ALONE]
        meaning = "grounding_meaning" in self.checks
        self.embed = load_embedder(config.quality.embedder) if meaning and config.quality.embedder else None
        self.barren = 0  # steps in a row without a valid pair

    def __call__(
        self, completions: list, document_id: list[str], trainer_state: TrainerState, log_metric: LogMetric, **_: Any
    ) -> list[float | None]:
        """The rewards of this process's completions. TRL would leave out a row whose reward is None: none is here."""
        step = trainer_state.global_step
        written = [Completion(completion[0]["content"], 0, 0, finished=True) for completion in completions]
        trajectories = [
            Trajectory(step, read_rubric(completion, self.documents[document], self.author, self.seed, slot))
            for slot, (document, completion) in enumerate(zip(document_id, written, strict=True))
        ]
        self.ask_teacher(trajectories, step)
        self.score_pairs(trajectories)
        everyones = gather_rows(trajectories)
        state = open_state()
        main = state.is_main_process
        done = (self.finish_step(everyones, step, log_metric), self.judge(everyones)) if main else ([], "")
        earned, stop = broadcast(done)
        if stop:
            raise RunStopped(stop)
        start = state.process_index * len(trajectories)
        return [*earned[start : start + len(trajectories)]]

    def finish_step(self, trajectories: list[Trajectory], step: int, log_metric: LogMetric) -> list[float]:
        """The reward of every rubric of a step, of all processes; keeps the trajectories with it."""
        scores, valid_n = self.stack(trajectories)
        # Every pair is credited by itself, as a rubric's pairs may serve different directions.
        earned = self.reward(scores, valid_n, step).view(len(trajectories), -1).mean(dim=1).tolist()
        for trajectory, reward in zip(trajectories, earned, strict=True):
            trajectory.reward = reward
        append_trajectories(self.log, trajectories)
        for name, value in describe_batch(trajectories, scores, valid_n).items():
            log_metric(name, value)
        return earned

    def judge(self, trajectories: Sequence[Trajectory]) -> str:
        """Why training cannot go on: MOST_BARREN steps in a row without one valid pair; "" where it can."""
        problems = Counter(t.rubric.problem for t in trajectories if t.rubric.problem)
        problems.update(taught.pair.problem for t in trajectories for taught in t.pairs if taught.pair.problem)
        valid = any(not taught.pair.problem for t in trajectories for taught in t.pairs)
        self.barren = 0 if valid else self.barren + 1
        if self.barren < MOST_BARREN:
            return ""
        reasons = "; ".join(f"{count} x {problem}" for problem, count in problems.most_common(3))
        return (
            f"{self.barren} steps in a row gave no valid pair, so there is nothing to learn from: {reasons}. Mend the "
            "prompts, the rubric generator or the teacher; trajectories.jsonl has what they wrote"
        )

    def stack(self, trajectories: Sequence[Trajectory]) -> tuple[Scores, torch.Tensor]:
        return stack_influence(trajectories, self.config.rl.pairs_per_rubric, self.score.directions)

    def reward(self, scores: Scores, valid_n: torch.Tensor, step: int) -> torch.Tensor:
        """The reward of every pair, [n], by the name in the profile (rubric_influence.rl.rewards)."""
        kind, penalty = self.config.rl.reward, self.config.rl.invalid_penalty
        draw = seed_step(self.seed, step)
        if self.served is not None:
            influence_nk = scores.rewarded_nk
            if kind == "shuffled":
                influence_nk = rewards.shuffle_influence(influence_nk, valid_n, draw)
            reward_n, self.served = rewards.reward_set_influence(influence_nk, valid_n, self.served, penalty)
            return reward_n
        if kind == "published":
            return rewards.reward_published(scores.whole_n[:, None], valid_n)
        if kind == "random":
            return rewards.reward_random(valid_n, penalty, draw)
        return rewards.reward_influence(scores.whole_n[:, None], valid_n, penalty)

    def ask_teacher(self, trajectories: Sequence[Trajectory], step: int) -> None:
        """Put `pairs_per_rubric` pairs into every trajectory whose rubric is valid, and what they cost."""
        asked = [t for t in trajectories if not t.rubric.problem for _ in range(self.config.rl.pairs_per_rubric)]
        tasks = [PairTask(self.documents[t.rubric.document_id], t.rubric, t.rubric.slot) for t in asked]
        seed = seed_step(self.seed, step, open_state().process_index)
        conversations = ask_for_pairs(tasks, self.config.prompts)
        completions = self.teacher.generate(conversations, sample_pairs(self.config.synthesis, seed))
        if failures := [c.failure for c in completions if c.failure and not c.refused]:  # refused: an invalid pair
            # The rubrics are not to blame: a penalty would teach them nothing, to leave them out would bias groups.
            raise RunStopped(
                f"the teacher {self.teacher.name} left {len(failures)} of {len(completions)} requests of step {step} "
                f"unanswered ({failures[0]}); run again: what was answered is kept, and training goes on from its last "
                "checkpoint"
            )
        answered = zip(completions, tasks, strict=True)
        pairs = self.remove([read_pair(completion, task, self.teacher.name, seed) for completion, task in answered])
        for trajectory, pair, completion in zip(asked, pairs, completions, strict=True):
            # Influence is measured on these questions: a pair that repeats one leaks its answer and teaches nothing.
            leaked = "" if pair.problem else self.score.expert_questions.find(f"{pair.question}\n{pair.answer}")
            if leaked:
                pair = replace(pair, question="", answer="", problem=leaked, raw=completion.text)
            trajectory.pairs.append(TaughtPair(pair, completion.prompt_tokens, completion.completion_tokens))

    def remove(self, pairs: list[QAPair]) -> list[QAPair]:
        """The pairs; one that quality.remove would leave out of a final set has the reason as its problem.

        Else a rubric could earn by false answers: they teach the form of an answer as well as true ones do.
        """
        if not self.checks:
            return pairs
        texts = {document.id: document.text for document in self.documents.values()}
        return remove_flagged(pairs, Screen(self.config.quality, [], self.embed).check(pairs, texts), self.checks)

    def score_pairs(self, trajectories: Sequence[Trajectory]) -> None:
        """Put the influence along every direction into every valid pair."""
        if valid := [taught for t in trajectories for taught in t.pairs if not taught.pair.problem]:
            rows = stack_scores(self.score([taught.pair for taught in valid])).tolist()
            for taught, influence in zip(valid, rows, strict=True):
                taught.influence = [round(value, DECIMALS) for value in influence]

    def rewind(self, step: int) -> None:
        """Forget what was logged from `step` on, and serve again what came before it, as a resumed run needs.

        Only the main process has the log and knows what was served.
        """
        if self.served is not None:
            self.served = self.score.served
        if not (open_state().is_main_process and self.log.exists()):
            return
        kept = cut_trajectories(self.log, step)
        if self.served is not None:
            for number in range(step):
                scores, valid_n = self.stack([trajectory for trajectory in kept if trajectory.step == number])
                self.served = self.served.update(scores.rewarded_nk, valid_n)

    def read_scores(self, ends: Sequence[int]) -> list[Scores]:
        """The scores of all valid pairs of each window of steps; a window lasts to before its end."""
        windows = []
        if open_state().is_main_process:
            logged = read_trajectories(self.log)
            for start, end in zip([0, *ends], ends, strict=False):
                scores, valid_n = self.stack([trajectory for trajectory in logged if start <= trajectory.step < end])
                windows.append(scores[valid_n])
        return broadcast(windows)
