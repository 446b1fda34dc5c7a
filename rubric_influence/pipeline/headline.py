"""The figures that say how a run went, in one small file: what `dvc metrics show` and `dvc metrics diff` print."""

import json
from pathlib import Path

from rubric_influence.core.files import write_json
from rubric_influence.core.paths import METRICS
from rubric_influence.pipeline.spending import tabulate_stages


def collect_headline(metrics: Path = METRICS) -> dict:
    """The headline figures, from the metrics of all stages.

    accuracy: mean over seeds, by arm, in [0, 1]. gain: of the optimised arm over the initial one, with its 95 %
    interval. gate: the rank correlation of influence and gain, the lower end of its 95 % interval, and whether it
    passed. guard_influence: mean over seeds in the first and in the last fifth of RL's steps, which no reward sees.
    valid: the share of valid pairs among those requested for the optimised arm. tokens: read and written by the models
    that were asked for texts, over all stages.
    """
    evaluation, gate, generators, final = (
        json.loads((metrics / f"{stage}.json").read_text(encoding="utf-8"))
        for stage in ("evaluation", "gate", "generators", "final")
    )
    gain = evaluation["arms"]["optimised"]["gain_over_initial"]
    phases = generators["phases"].values()
    guard = {
        part: sum(phase[f"{part} fifth"]["guard_influence"] for phase in phases) / len(phases)
        for part in ("first", "last")
    }
    pairs = [counts["pairs"] for counts in final["arms"]["optimised"].values()]
    spent = tabulate_stages(metrics).loc[("all", "")]
    return {
        "accuracy": {arm: row["mean"] for arm, row in evaluation["arms"].items()},
        "gain": {"mean": gain["mean"], "low": gain["ci95"][0], "high": gain["ci95"][1]},
        "gate": {
            "passed": gate["passed"],
            "spearman": gate["influence"]["spearman"],
            "spearman_low": gate["influence"]["spearman_ci95"][0],
        },
        "guard_influence": {part: round(value, 5) for part, value in guard.items()},
        "valid": round(sum(row["valid"] for row in pairs) / sum(row["requested"] for row in pairs), 4),
        "tokens": int(spent["prompt_tokens"] + spent["completion_tokens"]),
    }


def write_headline(metrics: Path = METRICS) -> dict:
    """Write metrics/headline.json; returns what it holds."""
    found = collect_headline(metrics)
    write_json(metrics / "headline.json", found)
    return found
