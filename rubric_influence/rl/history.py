"""What a finished run's trajectories say of it, step by step: whether the reward was earned or gamed.

Nothing is computed anew by a model: influence, rewards and problems are those that were logged.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import pandas as pd

from rubric_influence.rl.diagnostics import describe_batch
from rubric_influence.rl.guards import measure_dev, summarise_window
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.scores import Directions
from rubric_influence.rl.trajectories import Trajectory, stack_influence


def tabulate_steps(trajectories: Sequence[Trajectory], directions: Directions) -> pd.DataFrame:
    """A row a step, numbered from 1: what `diagnostics.describe_batch` says of its rubrics and pairs, and

    reward            mean over rubrics
    commonest_rubric  share of rubrics in the commonest wording
    answer_words      mean over valid pairs; 0 where there are none

    `directions` are those that the run's pairs were scored along. Trajectories are in the order of steps.
    """
    rows = {}
    for step, found in groupby(trajectories, key=lambda trajectory: trajectory.step):
        batch = list(found)
        scores, valid_n = stack_influence(batch, max(1, *(len(each.pairs) for each in batch)), directions)
        wordings = Counter(each.rubric.raw or each.rubric.text for each in batch)
        answers = [taught.pair.answer for each in batch for taught in each.pairs if not taught.pair.problem]
        rows[step + 1] = {
            "reward": sum(each.reward for each in batch) / len(batch),
            **describe_batch(batch, scores, valid_n),
            "commonest_rubric": max(wordings.values()) / len(batch),
            "answer_words": sum(len(answer.split()) for answer in answers) / max(1, len(answers)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")


def tabulate_windows(
    trajectories: Sequence[Trajectory], directions: Directions, steps: int, dev_served: ServedDirections | None = None
) -> pd.DataFrame:
    """What the guards look at: a row for each window of `steps` steps (rl.save_every), by the step that ends it.

    validation, guard: mean influence of the window's valid pairs; validation_error, guard_error: standard errors of the
    means; dev_utility: guards.measure_dev, in nats, where there is `dev_served`. Windows of fewer than two valid pairs
    are left out.
    """
    rows, first = {}, None
    for _, found in groupby(trajectories, key=lambda trajectory: trajectory.step // steps):
        batch = list(found)
        stacked, valid_n = stack_influence(batch, max(1, *(len(each.pairs) for each in batch)), directions)
        scores = stacked[valid_n]
        if len(scores) < 2:
            continue
        window, first = summarise_window(scores), first or scores
        row = {"validation": window.validation, "validation_error": window.validation_variance**0.5}
        row |= {"guard": window.guard, "guard_error": window.guard_variance**0.5}
        dev = {"dev_utility": measure_dev(scores, first, dev_served)} if dev_served else {}
        rows[batch[-1].step + 1] = row | dev
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")


def tabulate_rollouts(trajectories: Sequence[Trajectory]) -> pd.DataFrame:
    """A row for each pair of each rubric, in order; one row with an empty pair for a rubric that led to none.

    Columns: step (from 1), document_id, rubric, reward (the rubric's), question, answer, influence and guard_influence
    (NaN where it cannot be used), problem (of rubric or pair; "" where there is none).
    """
    rows = []
    for each in trajectories:
        told = (each.step + 1, each.rubric.document_id, each.rubric.raw or each.rubric.text, each.reward)
        for taught in each.pairs:
            whole, guard = (taught.influence[0], taught.influence[-1]) if taught.influence else (None, None)
            rows.append((*told, taught.pair.question, taught.pair.answer, whole, guard, taught.pair.problem))
        if not each.pairs:
            rows.append((*told, "", "", None, None, each.rubric.problem))
    names = ["step", "document_id", "rubric", "reward", "question", "answer", "influence", "guard_influence", "problem"]
    return pd.DataFrame(rows, columns=names).astype({"influence": float, "guard_influence": float})


def tabulate_wordings(rollouts: pd.DataFrame, most: int) -> pd.DataFrame:
    """The `most` commonest wordings of each step's rubrics, the commonest first; `rollouts` as `tabulate_rollouts` has.

    Columns: step, rubric, pairs (how many), influence, guard_influence and reward (their means).
    """
    groups = rollouts.groupby(["step", "rubric"], sort=False)
    table = groups[["influence", "guard_influence", "reward"]].mean()
    table.insert(0, "pairs", groups.size())
    ordered = table.reset_index().sort_values(["step", "pairs"], ascending=[True, False], kind="stable")
    return ordered.groupby("step").head(most).reset_index(drop=True)


def compare_rubrics(rollouts: pd.DataFrame, one: int, other: int) -> pd.DataFrame:
    """Two rubrics side by side, each with its pair: a row a property, columns `one`, `other` and `difference`.

    `one` and `other` are rows of `tabulate_rollouts`; `difference` is other less one, of numbers alone. Raises
    ValueError for rows of different documents.
    """
    rows = rollouts.loc[[one, other]]
    if rows["document_id"].nunique() > 1:
        raise ValueError(f"rows {one} and {other} are of different documents; give two of one document")
    numbers = ["influence", "guard_influence", "reward"]
    table = rows[["step", "rubric", "question", "answer", *numbers]].T.set_axis(["one", "other"], axis=1)
    differences = (rows.loc[other, numbers] - rows.loc[one, numbers]).reindex(table.index)
    return table.assign(difference=differences)


def count_problems(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Why rubrics and pairs could not be used, and how often, the commonest first; repeated expert questions too."""
    problems = [each.rubric.problem for each in trajectories]
    problems += [taught.pair.problem for each in trajectories for taught in each.pairs]
    return dict(Counter(filter(None, problems)).most_common())
