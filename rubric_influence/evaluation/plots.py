"""Figures: a table in, a matplotlib figure out. Nothing here reads or writes files."""

from itertools import cycle

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


def plot_gate(sets: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """What each set of pairs gained against what was predicted, one panel per predictor of `titles`, a sign per seed.

    `sets`: predictors and gain in deviations (stages.gate.standardise_sets); the line is their regression.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 3.4), layout="constrained", sharey=True)
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        x, y = sets[column], sets["gain"]
        for (seed, rows), marker, color in zip(sets.groupby("seed"), cycle("o^sDv"), cycle((BLUE, ORANGE, GREY))):
            axes.scatter(x[rows.index], y[rows.index], s=14, marker=marker, color=color, alpha=0.7, edgecolors="none",
                         label=seed)  # fmt: skip
        ends = pd.Series([x.min(), x.max()])
        axes.plot(ends, x.corr(y) * ends, color="black", linewidth=1.5)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(title=title, xlabel=f"mean {column} of a set (deviations)")
    panels[0].set_ylabel("gain of held-out questions (deviations)")
    panels[0].legend(frameon=False, title="seed")
    return figure


def plot_shift(influence: dict[str, pd.Series], unit: str) -> Figure:
    """The influence of two sets' pairs: for every value on the axis, the share of a set's pairs above it."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, values), color, line in zip(influence.items(), (GREY, ORANGE), ("--", "-"), strict=True):
        left = [100 * (1 - place / len(values)) for place in range(len(values))]
        label = f"{name}: mean {values.mean():.3g}"
        axes.step(values.sort_values(), left, where="pre", color=color, linestyle=line, label=label)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel=f"influence ({unit})", ylabel="pairs above it, %", ylim=(0, 100))
    axes.legend(frameon=False)
    return figure


def plot_terms(terms: pd.DataFrame) -> Figure:
    """The change of each word's share of rubrics, in points: a row a word, columns change, low, high (its interval)."""
    figure, axes = plt.subplots(figsize=(6, 0.26 * len(terms) + 0.9), layout="constrained")
    places, rising = range(len(terms)), terms["change"] > 0
    colors = [ORANGE if up else BLUE for up in rising]
    axes.barh(places, terms["change"], color=colors, alpha=0.75)
    axes.hlines(places, terms["low"], terms["high"], color="black", linewidth=1.5)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(places, list(terms.index))
    axes.invert_yaxis()
    axes.set(xlabel="change of the share of rubrics with this word, points (line: 95 % interval)")
    return figure


def plot_spaces(places: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Expert and synthetic pairs on one map a space. Columns: kind, and x and y of every space in `titles`."""
    figure, panels = plt.subplots(1, len(titles), figsize=(4.5 * len(titles), 4), layout="constrained", squeeze=False)
    for axes, (space, title) in zip(panels[0], titles.items(), strict=True):
        for kind, marker, color in (("synthetic", "o", BLUE), ("expert", "^", ORANGE)):
            rows = places[places["kind"] == kind]
            size = 22 if kind == "expert" else 12
            axes.scatter(rows[f"{space}_x"], rows[f"{space}_y"], s=size, marker=marker, color=color, alpha=0.7,
                         edgecolors="none", label=kind)  # fmt: skip
        axes.set(title=title, xticks=[], yticks=[], xlabel="UMAP (distances are not to scale)")
    panels[0][0].legend(frameon=False)
    return figure


def plot_training(log: pd.DataFrame) -> Figure:
    """Influence on both sets of questions, shares of rubrics, and what is covered, by step: means over seeds.

    Columns: seed, step, influence, guard_influence, valid, distinct_rubrics, covered_directions.
    """
    mean = log.groupby("step").mean()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for _, rows in log.groupby("seed"):
        left.plot(rows["step"], rows["influence"], color=BLUE, alpha=0.25, linewidth=1)
        left.plot(rows["step"], rows["guard_influence"], color=ORANGE, alpha=0.25, linewidth=1, linestyle="--")
    left.plot(mean.index, mean["influence"], color=BLUE, label="validation (rewarded)")
    left.plot(mean.index, mean["guard_influence"], color=ORANGE, linestyle="--", label="guard (never rewarded)")
    left.axhline(0, color=GREY, linewidth=1)
    left.set(title="Influence of a step's pairs", xlabel="step", ylabel="influence")
    left.legend(frameon=False)
    middle.plot(mean.index, 100 * mean["valid"], color=BLUE, label="that led to valid pairs")
    middle.plot(mean.index, 100 * mean["distinct_rubrics"], color=ORANGE, linestyle="--", label="distinct wordings")
    middle.set(title="Shares of a step's rubrics", xlabel="step", ylabel="%", ylim=(0, 102))
    middle.legend(frameon=False)
    right.plot(mean.index, mean["covered_directions"], color=BLUE)
    most = 1.1 * mean["covered_directions"].max()
    right.set(title="Equal directions that a step covers", xlabel="step", ylabel="directions", ylim=(0, most))
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


def plot_tokens(tokens: pd.DataFrame, column: str, title: str, unit: str) -> Figure:
    """What each token of an answer contributed to a score, in reading order: bars, hatched where it is negative.

    Columns: token, and `column`, which is in `unit`.
    """
    figure, axes = plt.subplots(figsize=(max(5, 0.26 * len(tokens) + 1.2), 3.8), layout="constrained")
    values = tokens[column].to_numpy()
    for place, value in enumerate(values):
        negative = value < 0
        axes.bar(
            place, value, width=0.75, color=ORANGE if negative else BLUE, hatch="///" if negative else None, ec="white"
        )
    axes.axhline(0, color="black", linewidth=1)
    # A tokenizer's blanks and line breaks would not be seen.
    axes.set_xticks(range(len(values)), [repr(token)[1:-1] for token in tokens["token"]], rotation=90)
    axes.set(ylabel=f"contribution\n({unit})", title=title, xlim=(-0.7, len(values) - 0.3))
    return figure
