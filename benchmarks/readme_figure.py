"""The README's figure, from the committed figures of the lab's run and of the textbooks.

    python -m benchmarks.readme_figure

writes docs/results.svg and, for dark pages, docs/results-dark.svg. The same figures give the same bytes.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rubric_influence.evaluation.plots import BLUE, GREY, ORANGE
from rubric_influence.evaluation.results import UNITS, read_results

ROOT = Path(__file__).parents[1]
INK = {"results": "#1f2328", "results-dark": "#e6edf3"}  # file -> colour of text and lines
PREDICTORS = {"influence": ORANGE, "similarity": BLUE}


def read_agreements(root: Path) -> dict[str, dict]:
    """Where the gate was measured -> its figures: r2 and r2_ci95 of each predictor."""
    lab = json.loads((root / "metrics/gate.json").read_text(encoding="utf-8"))
    books = json.loads((root / "benchmarks/results/textbooks.json").read_text(encoding="utf-8"))["gate"]
    found = {"lab, medicine": {name: lab[name] for name in PREDICTORS}}
    for place, gate in books.items():
        book, target = place.split("/")
        title = book.removesuffix("-2e").replace("-", " ")
        found[f"{title},\n{target}"] = {name: gate["teacher"]["answer_nats"][name] for name in PREDICTORS}
    return found


def draw_agreements(axes: Axes, root: Path, ink: str) -> None:
    found = read_agreements(root)
    for place, figures in enumerate(found.values()):
        for offset, (name, color) in zip((-0.2, 0.2), PREDICTORS.items(), strict=True):
            low, high = figures[name]["r2_ci95"]
            axes.barh(place + offset, figures[name]["r2"], height=0.36, color=color, label=None if place else name)
            axes.plot([low, high], [place + offset] * 2, color=ink, linewidth=1.5)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="R² with the gain of held-out questions (line: 95 % interval)")
    axes.set_title("Influence predicts what training gains", loc="left")
    axes.legend(frameon=False, loc="lower right", labelcolor=ink)


def draw_exam(axes: Axes, root: Path, ink: str) -> None:
    results = read_results(root / "metrics/evaluation.json")
    unit = UNITS["accuracy"]
    arms = sorted(results["arms"].items(), key=lambda item: item[1]["mean"])
    for place, (arm, row) in enumerate(arms):
        axes.barh(place, unit.factor * row["mean"], color={"optimised": ORANGE, "initial": BLUE}.get(arm, GREY))
        axes.plot([unit.factor * end for end in row["ci95"]], [place] * 2, color=ink, linewidth=1.5)
    axes.axvline(unit.factor * results["chance"], color=ink, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm, _ in arms])
    axes.set(xlim=(0, 100), xlabel="accuracy in the lab's exam, % (dotted: chance)")
    axes.set_title("Rubrics trained on it pay, in the lab", loc="left")


def draw(root: Path, ink: str) -> Figure:
    """The figure of the figures below `root`, in one colour of text and lines."""
    lines = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), ink)
    with plt.rc_context(lines | {"font.size": 10, "axes.titleweight": "bold"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
        draw_agreements(left, root, ink)
        draw_exam(right, root, ink)
        for axes in (left, right):
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_figures(root: Path, out: Path) -> None:
    for name, ink in INK.items():
        with plt.rc_context({"svg.hashsalt": "results"}):
            figure = draw(root, ink)
            figure.savefig(out / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)


if __name__ == "__main__":
    write_figures(ROOT, ROOT / "docs")
