"""The results table: who won, by how much, and how sure that is."""

from pathlib import Path

import pandas as pd

from rubric_influence.core.files import parse_json, read_text
from rubric_influence.core.paths import METRICS, TUNED_ARMS, UNTUNED

SMALLEST_MEANINGFUL = 100_000_000  # parameters; below, a model of natural language knows too little to be examined
MEANING = {UNTUNED: "the target as it is"} | TUNED_ARMS


def read_results(path: str | Path = METRICS / "evaluation.json") -> dict:
    """The evaluation's figures: arms, items, seeds, chance, corpus, target_parameters. Raises ValueError if absent."""
    if not Path(path).is_file():
        raise ValueError(f"no results at {path}; run the pipeline first: make repro")
    results = parse_json(read_text(path))
    if not isinstance(results, dict) or "arms" not in results:
        raise ValueError(f"{path} holds no results; give a file that the stage evaluation wrote")
    return results


def tabulate_results(results: dict) -> pd.DataFrame:
    """One row per arm, best first: accuracy in per cent with its interval, and the gain over the initial generator."""
    rows = {}
    for arm, figures in sorted(results["arms"].items(), key=lambda item: -item[1]["mean"]):
        gain, initial = figures["gain_over_initial"], arm == "initial"
        rows[arm] = {
            "accuracy %": round(100 * figures["mean"], 1),
            "95 % interval": " to ".join(f"{100 * bound:.1f}" for bound in figures["ci95"]),
            "gain over initial": "" if initial else f"{100 * gain['mean']:+.1f}",
            "its 95 % interval": "" if initial else " to ".join(f"{100 * bound:+.1f}" for bound in gain["ci95"]),
            "trained on": MEANING[arm],
        }
    return pd.DataFrame(list(rows.values()), pd.Index(rows, name="arm"))


def read_out(results: dict) -> str:
    """One sentence: what training the rubric generator on influence gained, and whether the interval excludes zero."""
    gain = results["arms"]["optimised"]["gain_over_initial"]
    low, high = (100 * bound for bound in gain["ci95"])
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no difference that this exam can show"
    return (
        f"Training the rubric generator on influence changed accuracy by {100 * gain['mean']:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}) over the untrained generator: {verdict}. "
        f"{results['seeds']} seeds, {results['items']} questions, chance {100 * results['chance']:.0f} %."
    )


def print_results(results: dict) -> str:
    """The results table, its reading in one sentence, and a caution where one is due."""
    return f"{tabulate_results(results).to_string()}\n\n{read_out(results)}\n{caution(results)}".rstrip()


def caution(results: dict) -> str:
    """A warning beside the figures of a target that is too small for its exam; "" for any other."""
    if results["corpus"] == "lab" or results["target_parameters"] >= SMALLEST_MEANINGFUL:
        return ""
    return (
        f"The target has {results['target_parameters'] / 1e6:.1f} million parameters, far too few to know anything of "
        "this exam: these accuracies mean nothing. The run shows that every stage completes on this text."
    )
