"""The seeds of a run's random streams: each is derived here, by its purpose, from the seed that the profile names.

What draws once for a run (the warm-up's choice of pairs, k-means, the gate's sets, a trainer) takes that seed itself.
Streams that run side by side or one after another need seeds of their own, which these functions give. The numbers are
those of the committed results: a change here makes other rubrics and pairs, and those results have to be made anew.
"""

ATTEMPT_STRIDE = 1_000_003
PROCESS_STRIDE = 15_485_863
FINAL_RUBRICS = 7919


def seed_attempt(seed: int, attempt: int) -> int:
    """Of a further request for records that came out invalid; attempt 0 is the first request."""
    return seed + ATTEMPT_STRIDE * attempt


def seed_batch(seed: int, start: int) -> int:
    """Of the batch that begins at request `start`: the same document may be asked about in several batches."""
    return seed + start


def seed_final_rubrics(seed: int) -> int:
    """Of the final sets' rubrics, which are not to be the initial set's over again."""
    return seed + FINAL_RUBRICS


def seed_step(seed: int, step: int, process: int = 0) -> int:
    """Of an RL step in one of its processes: of the pairs that the teacher writes, and of the rewards for control."""
    return seed * ATTEMPT_STRIDE + step + PROCESS_STRIDE * process


def seed_rollout(seed: int, step: int, process: int = 0) -> int:
    """Of the rubrics that RL samples under the JSON schema at a step, in one of its processes."""
    return seed_step(seed, step, process)
