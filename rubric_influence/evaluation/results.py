"""The results table: who won, by how much, and how sure that is."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rubric_influence.core.files import parse_json, read_text
from rubric_influence.core.paths import METRICS, TUNED_ARMS, UNTUNED

SMALLEST_MEANINGFUL = 100_000_000  # parameters; below, a model of natural language knows too little to be examined
MEANING = {UNTUNED: "the target as it is"} | TUNED_ARMS


class Unit(NamedTuple):
    """How a measure is shown: times `factor`, with so many digits."""

    name: str
    factor: int = 1
    digits: int = 3

    def show(self, value: float, sign: str = "") -> str:
        return f"{self.factor * value:{sign}.{self.digits}f}"

    def span(self, bounds: list[float], sign: str = "") -> str:
        return " to ".join(self.show(bound, sign) for bound in bounds)


PER_CENT = {"factor": 100, "digits": 1}
UNITS = {
    "accuracy": Unit("accuracy %", **PER_CENT),
    "accuracy_by_length": Unit("accuracy by length %", **PER_CENT),
    "answer_nats": Unit("nats a token of the right answer"),
    "option_nats": Unit("nats of the right option among the options"),
    "exact_match": Unit("exact match %", **PER_CENT),
    "token_f1": Unit("token F1 %", **PER_CENT),
}


def read_results(path: str | Path = METRICS / "evaluation.json") -> dict:
    """The evaluation's figures, as `evaluate_arms` returns them. Raises ValueError if absent or of an older version."""
    if not Path(path).is_file():
        raise ValueError(f"no results at {path}; run the pipeline first: make repro")
    results = parse_json(read_text(path))
    if not isinstance(results, dict) or "arms" not in results:
        raise ValueError(f"{path} holds no results; give a file that the stage evaluation wrote")
    if "measure" not in results:
        raise ValueError(f"{path} is of an earlier version, whose exam scored other tokens; run the stage evaluation")
    return results


def tabulate_results(results: dict) -> pd.DataFrame:
    """One row per arm, best first: the main measure with its interval, and the gain over the initial generator."""
    rows, unit, nats = {}, UNITS[results["measure"]], results["measure"] == "answer_nats"
    for arm, figures in sorted(results["arms"].items(), key=lambda item: item[1]["mean"], reverse=not nats):
        gain, initial = figures["gain_over_initial"], arm == "initial"
        rows[arm] = {
            unit.name: float(unit.show(figures["mean"])),
            "95 % interval": unit.span(figures["ci95"]),
            "gain over initial": "" if initial else unit.show(gain["mean"], "+"),
            "its 95 % interval": "" if initial else unit.span(gain["ci95"], "+"),
            "trained on": MEANING[arm],
        }
    return pd.DataFrame(list(rows.values()), pd.Index(rows, name="arm"))


def tabulate_measures(results: dict) -> pd.DataFrame:
    """One row per further measure or task: initial and optimised, and what optimising gained, with its interval.

    A gain is positive where the optimised arm is better: more accurate, or fewer nats.
    """
    rows = {}
    for name, found in (results["measures"] | results["tasks"]).items():
        unit, arms = UNITS.get(name, Unit(name)), found["arms"]
        gain = arms["optimised"]["gain_over_initial"]
        rows[unit.name] = {arm: unit.show(arms[arm]["mean"]) for arm in (UNTUNED, "initial", "optimised")} | {
            "gain over initial": unit.show(gain["mean"], "+"),
            "its 95 % interval": unit.span(gain["ci95"], "+"),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def read_out(results: dict) -> str:
    """One sentence: what training the rubric generator on influence gained, and whether the interval excludes zero."""
    gain, unit = results["arms"]["optimised"]["gain_over_initial"], UNITS[results["measure"]]
    low, high = gain["ci95"]
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no difference that this exam can show"
    what = (
        "changed accuracy by {} points" if results["measure"] == "accuracy" else "saved {} nats a token of the answer"
    )
    chance = "" if results["chance"] is None else f", chance {100 * results['chance']:.0f} %"
    return (
        f"Training the rubric generator on influence {what.format(unit.show(gain['mean'], '+'))} "
        f"(95 % interval {unit.span([low, high], '+')}) over the untrained generator: {verdict}. "
        f"{results['seeds']} seeds, {results['items']} questions{chance}."
    )


def print_results(results: dict) -> str:
    """The results table, its reading in one sentence, the further measures, and a caution where one is due."""
    further = tabulate_measures(results)
    tables = [tabulate_results(results).to_string(), read_out(results), "" if further.empty else further.to_string()]
    return "\n\n".join(part for part in (*tables, caution(results)) if part)


def caution(results: dict) -> str:
    """A warning beside the figures of a target that is too small for its exam; "" for any other."""
    if results["corpus"] == "lab" or results["target_parameters"] >= SMALLEST_MEANINGFUL:
        return ""
    return (
        f"The target has {results['target_parameters'] / 1e6:.1f} million parameters, far too few to know anything of "
        "this exam: these accuracies mean nothing. The run shows that every stage completes on this text."
    )
