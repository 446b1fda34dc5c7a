"""A finished run as tables to look into: what its files hold, joined, and nothing computed anew."""

import pandas as pd
from pyarrow import parquet

from rubric_influence.core.paths import GENERATORS, INFLUENCE, seed_folder
from rubric_influence.rl.scores import DEV, GUARD, VALIDATION, Directions
from rubric_influence.rl.trajectories import Trajectory, read_trajectories
from rubric_influence.synthesis.trace import trace_set

MOST_PAIRS = 2000  # that a browser sorts and searches at once
SHORTEST = 400  # characters of a document that a row shows


def tabulate_pairs(arm: str, seed: int) -> pd.DataFrame:
    """The valid pairs of an arm's set, the highest influence first, each with its rubric and its document.

    Columns: influence, guard_influence, question, answer, rubric ("" where the teacher saw none), document (its start),
    id. Of more than MOST_PAIRS pairs, the first and the last halves of so many. Raises ValueError as trace_set does.
    """
    rows = [
        (
            *(trace.influence[name] for name in (VALIDATION, GUARD)),
            *(trace.pair.question, trace.pair.answer, trace.rubric.text if trace.rubric else ""),
            *(trace.document.text[:SHORTEST] if trace.document else "", trace.pair.id),
        )
        for trace in trace_set(arm, seed)
        if not trace.pair.problem
    ]
    names = ["influence", "guard_influence", "question", "answer", "rubric", "document", "id"]
    table = pd.DataFrame(rows, columns=names).sort_values("influence", ascending=False, kind="stable")
    half = MOST_PAIRS // 2
    table = table if len(table) <= MOST_PAIRS else pd.concat([table.head(half), table.tail(half)])
    return table.reset_index(drop=True)


def read_run(seed: int) -> tuple[list[Trajectory], Directions]:
    """The trajectories of a seed's RL, and the directions along which it scored pairs.

    Raises ValueError where the stages influence and generators have not run.
    """
    log, scores = seed_folder(GENERATORS, seed) / "trajectories.jsonl", seed_folder(INFLUENCE, seed)
    scores = scores.with_name(f"{scores.name}.parquet")
    for path in (log, scores):
        if not path.is_file():
            raise ValueError(f"no run of seed {seed}: {path} is missing; run the pipeline first (make repro)")
    names = parquet.read_schema(scores).names
    named = names[names.index(VALIDATION) + 1 : -1]
    dev = tuple(name for name in named if name.startswith(f"{DEV}, "))
    return read_trajectories(log), Directions(tuple(name for name in named if name not in dev), dev)
