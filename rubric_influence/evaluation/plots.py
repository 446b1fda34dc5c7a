"""Figures: a table in, a matplotlib figure out. Nothing here reads or writes files."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from rubric_influence.evaluation.results import UNITS

BLUE, ORANGE, GREY = "#3b6ea8", "#d9822b", "#8a8f98"


def plot_losses(losses: pd.DataFrame) -> Figure:
    """Training loss by epoch, one line per seed. Columns: seed, epoch, loss."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for seed, rows in losses.groupby("seed"):
        axes.plot(rows["epoch"], rows["loss"], marker="o", markersize=3, label=f"seed {seed}")
    axes.set(xlabel="epoch", ylabel="training loss (nats a token)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def plot_influence(scores: pd.DataFrame) -> Figure:
    """The spread of influence over pairs, and influence on guard against validation questions (columns of `scores`)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for seed, rows in scores.groupby("seed"):
        left.hist(rows["validation"], bins=30, histtype="step", label=f"seed {seed}")
    left.axvline(0, color=GREY, linewidth=1)
    left.set(xlabel="influence", ylabel="pairs")
    left.legend(frameon=False)
    right.scatter(scores["validation"], scores["guard"], s=6, alpha=0.5, color=BLUE, edgecolors="none")
    right.axhline(0, color=GREY, linewidth=1)
    right.axvline(0, color=GREY, linewidth=1)
    right.set(xlabel="influence on validation questions", ylabel="influence on guard questions")
    return figure


def plot_pools(scores: pd.DataFrame, columns: dict[str, str]) -> Figure:
    """Each pool's scores, one panel per score: a dot per sample, a bar at the pool's mean.

    `scores` has the column `pool` and the keys of `columns`, whose values label the axes. A panel leaves out the pools
    that lack its score.
    """
    figure, panels = plt.subplots(1, len(columns), figsize=(4.5 * len(columns), 3), layout="constrained", squeeze=False)
    for axes, (column, label) in zip(panels[0], columns.items(), strict=True):
        pools = scores.dropna(subset=column).groupby("pool", sort=False)[column]
        for place, (_, values) in enumerate(pools):
            heights = place + 0.5 * (values.rank(method="first") % 5 / 4 - 0.5)  # so that dots do not overlap
            axes.scatter(values, heights, s=10, alpha=0.6, color=BLUE, edgecolors="none")
            axes.plot([values.mean()] * 2, [place - 0.35, place + 0.35], color=ORANGE, linewidth=2)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set(xlabel=label, yticks=range(len(pools)), yticklabels=list(pools.groups))
        axes.invert_yaxis()
    return figure


def plot_gate(sets: pd.DataFrame, predictors: dict[str, str]) -> Figure:
    """What each set of pairs gained against what was predicted, one panel per predictor, one colour per seed."""
    figure, panels = plt.subplots(1, len(predictors), figsize=(4.5 * len(predictors), 3.2), layout="constrained")
    for axes, (column, label) in zip(panels, predictors.items(), strict=True):
        for place, (seed, rows) in enumerate(sets.groupby("seed")):
            color = plt.cm.viridis(0.1 + 0.75 * place / sets["seed"].nunique())
            axes.scatter(rows[column], rows["gain"], s=12, alpha=0.7, color=color, edgecolors="none", label=seed)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xlabel=f"mean {label} of a set", ylabel="gain (nats a token)")
    panels[0].legend(frameon=False, title="seed")
    return figure


def plot_training(log: pd.DataFrame) -> Figure:
    """Influence on both sets of questions, and the shares of valid and distinct rubrics, by step: means over seeds.

    Columns: seed, step, influence, guard_influence, valid, distinct_rubrics.
    """
    mean = log.groupby("step").mean()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for _, rows in log.groupby("seed"):
        left.plot(rows["step"], rows["influence"], color=BLUE, alpha=0.25, linewidth=1)
        left.plot(rows["step"], rows["guard_influence"], color=ORANGE, alpha=0.25, linewidth=1)
    left.plot(mean.index, mean["influence"], color=BLUE, label="validation (rewarded)")
    left.plot(mean.index, mean["guard_influence"], color=ORANGE, label="guard (never rewarded)")
    left.axhline(0, color=GREY, linewidth=1)
    left.set(xlabel="step", ylabel="influence")
    left.legend(frameon=False)
    right.plot(mean.index, mean["valid"], color=BLUE, label="valid")
    right.plot(mean.index, mean["distinct_rubrics"], color=ORANGE, label="distinct wordings")
    right.set(xlabel="step", ylabel="share of rubrics", ylim=(0, 1.02))
    right.legend(frameon=False)
    return figure


def plot_shares(shares: pd.DataFrame) -> Figure:
    """Shares that sum to 1, one group of bars per row. Index: what is counted; columns: up to three sets to compare."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    shares.plot.bar(ax=axes, color=[GREY, BLUE, ORANGE], width=0.8)
    axes.set(xlabel="", ylabel="share of rubrics")
    plt.setp(axes.get_xticklabels(), rotation=45, horizontalalignment="right")
    axes.legend(frameon=False, title="")
    return figure


def plot_exam(results: dict) -> Figure:
    """The main measure by arm, with 95 % intervals, a dot a seed, and chance. `results`: of results.read_results."""
    measure, unit = results["measure"], UNITS[results["measure"]]
    arms = sorted(results["arms"].items(), key=lambda item: item[1]["mean"], reverse=measure == "answer_nats")
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(arms) + 1.2), layout="constrained")
    for place, (arm, row) in enumerate(arms):
        color = {"optimised": ORANGE, "privileged_rubric": GREY}.get(arm, BLUE)
        axes.barh(place, unit.factor * row["mean"], color=color, alpha=0.75, height=0.65)
        axes.plot([unit.factor * bound for bound in row["ci95"]], [place, place], color="black", linewidth=1.5)
        dots = [unit.factor * value for value in row[measure]]
        axes.scatter(dots, [place] * len(dots), s=12, color="black", zorder=3)
    dotted = ""
    if results["chance"] is not None:
        axes.axvline(100 * results["chance"], color="black", linestyle=":", linewidth=1)
        axes.set_xlim(0, 100)
        dotted = "; dotted: chance"
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm, _ in arms])
    axes.set(xlabel=f"exam, {unit.name} (line: 95 % interval; dots: seeds{dotted})")
    return figure
