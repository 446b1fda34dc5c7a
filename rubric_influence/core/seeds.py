"""The seeds of a run's random streams, each derived for its purpose from a seed of the profile.

What draws once for a run (the warm-up's choice of pairs, k-means, the gate's sets, a trainer) takes that seed itself.
Other streams need different seeds, which these functions give. A change here makes the committed results others.
"""

ATTEMPT_STRIDE = 1_000_003
PROCESS_STRIDE = 15_485_863
FINAL_RUBRICS = 7919
ROLLOUTS = 500_009  # farther than steps go


def seed_attempt(seed: int, attempt: int) -> int:
    """The seed of a further request for records that came out invalid; attempt 0 is the first request."""
    return seed + ATTEMPT_STRIDE * attempt


def seed_batch(seed: int, start: int) -> int:
    """The seed of the batch that begins at request `start`; batches differ, since a document may be in several."""
    return seed + start


def seed_final_rubrics(seed: int) -> int:
    """The seed of the final sets' rubrics, so that they are not the rubrics of the initial set again."""
    return seed + FINAL_RUBRICS


def seed_step(seed: int, step: int, process: int = 0) -> int:
    """The seed of an RL step in one of its processes, for the teacher's pairs and for random or shuffled rewards."""
    return seed * ATTEMPT_STRIDE + step + PROCESS_STRIDE * process


def seed_rollout(seed: int, step: int, process: int = 0) -> int:
    """The seed of the rubrics that RL samples under the JSON schema at a step, in one of its processes."""
    return seed_step(seed, step, process) + ROLLOUTS
