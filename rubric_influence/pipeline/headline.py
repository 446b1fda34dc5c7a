"""The figures that say how a run went, in one small file: what `dvc metrics show` and `dvc metrics diff` print."""

import json
from pathlib import Path

from rubric_influence.pipeline.spending import tabulate_stages


def collect_headline(metrics: Path) -> dict[str, object]:
    """The headline figures, from the files that the stages left in the folder `metrics`.

    accuracy: mean over seeds, by arm, in [0, 1] (answer_nats in its place, nats a token, where the exam has open
    questions alone). gain: of the optimised arm over the initial one, with its 95 %
    interval. gate: the rank correlation of influence and gain, the lower end of its 95 % interval, and whether the
    gate was passed. guard_influence: influence on the guard questions, which no reward sees, in the first and in the
    last fifth of RL's steps, mean over seeds. valid: the share of valid pairs among those requested for the optimised
    arm. tokens: read and written by the models that were asked for texts, over all stages.
    """
    evaluation, gate, generators, final = (
        json.loads((metrics / f"{stage}.json").read_text(encoding="utf-8"))
        for stage in ("evaluation", "gate", "generators", "final")
    )
    gain, rank = evaluation["arms"]["optimised"]["gain_over_initial"], gate["influence"]
    phases = generators["phases"].values()
    guard = {part: [phase[f"{part} fifth"]["guard_influence"] for phase in phases] for part in ("first", "last")}
    pairs = [counts["pairs"] for counts in final["arms"]["optimised"].values()]
    spent = tabulate_stages(metrics).loc["all", ["prompt_tokens", "completion_tokens"]]
    return {
        evaluation["measure"]: {arm: row["mean"] for arm, row in evaluation["arms"].items()},
        "gain": {"mean": gain["mean"], "low": gain["ci95"][0], "high": gain["ci95"][1]},
        "gate": {"passed": gate["passed"], "spearman": rank["spearman"], "spearman_low": rank["spearman_ci95"][0]},
        "guard_influence": {part: round(sum(values) / len(values), 5) for part, values in guard.items()},
        "valid": round(sum(row["valid"] for row in pairs) / sum(row["requested"] for row in pairs), 4),
        "tokens": int(spent.to_numpy().sum()),
    }
