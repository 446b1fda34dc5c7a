"""What a run says, as one HTML page: it needs no network, no script and no other file.

A stage that has not run is told as such, and so is one that failed or whose result belongs to other parameters, code or
data: a run that the gate stopped is what a reviewer most needs to read about. Only where nothing has run is there no
page. Figures are shown for the stages that have run, since the files in metrics/ may come with a clone.
"""

import io
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rubric_influence.core.checks import MOST_LISTED
from rubric_influence.core.config import Config
from rubric_influence.core.files import parse_json, read_text, replace_file
from rubric_influence.core.paths import METRICS
from rubric_influence.core.profiles import load_config
from rubric_influence.evaluation.plots import plot_exam
from rubric_influence.evaluation.results import caution, read_out, read_results, tabulate_measures, tabulate_results
from rubric_influence.pipeline.html_cells import describe_figure, render_figure, render_page, render_table
from rubric_influence.pipeline.run_state import StageRun, State, read_stages, tabulate_hashes
from rubric_influence.pipeline.spending import tabulate_stages

DISTRIBUTION = "rubric-influence"
UPPER_MARK = "privileged_rubric"  # knows the exam, so it cannot win
GUARDED = ("influence", "guard_influence", "valid", "distinct_rubrics")  # of generators.json's phases


def write_report(target: Path, profile: Path = Path("params.yaml")) -> list[StageRun]:
    """Write the page on the current project's run to `target`; returns the stages as it tells them.

    The same run, packages and commit give the same bytes. Raises ValueError where no stage has run or the profile is
    not valid.
    """
    config, stages = load_config(profile), read_stages()
    page = render_report(config, read_text(profile), stages)
    with replace_file(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return stages


def render_report(config: Config, profile: str, stages: list[StageRun]) -> str:
    """The page. `profile`: the text of params.yaml."""
    environment = Environment(
        loader=PackageLoader("rubric_influence.pipeline", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = render_table
    found = {stage.name: stage for stage in stages}
    inputs, outputs = tabulate_hashes(stages)
    return environment.get_template("report.html.j2").render(
        State=State,
        stages=found,
        pages={name: render_page(stage.notebook, name) for name, stage in found.items() if stage.notebook},
        timings=tabulate_timings(stages),
        setting=describe_setting(config),
        results=describe_results(found),
        gate=describe_gate(found),
        guards=tabulate_guards(read_metrics(found, "generators")),
        stopped=list_stopped(read_metrics(found, "generators")),
        left_out=list_left_out(read_metrics(found, "corpus")),
        refused=tabulate_refused(read_metrics(found, "initial"), read_metrics(found, "final")),
        quality=tabulate_quality(read_metrics(found, "final")),
        costs=tabulate_costs(found),
        profile=profile,
        versions=list_versions(),
        commit=describe_commit(),
        inputs=inputs,
        outputs=outputs,
    )


def read_metrics(stages: Mapping[str, StageRun], name: str) -> dict[str, Any]:
    """The figures that a stage left; none where it has not run or came to no figures."""
    path = METRICS / f"{name}.json"
    if name not in stages or stages[name].state is State.MISSING or not path.is_file():
        return {}
    figures = parse_json(read_text(path))
    if not isinstance(figures, dict):
        raise ValueError(f"{path} holds no figures; run the stage {name}")
    return figures


def describe_setting(config: Config) -> dict[str, str]:
    """What was asked of what, in a few words each."""
    models = {role: getattr(config.models, role) for role in ("target", "rubric_generator", "teacher")}
    corpus = config.corpus.kind + (f" ({field})" if (field := getattr(config.corpus, "field", None)) else "")
    return {"corpus": corpus, "seeds": ", ".join(map(str, config.seeds))} | {
        role.replace("_", " "): spec.path for role, spec in models.items()
    }


def describe_results(stages: Mapping[str, StageRun]) -> dict[str, Any]:
    """Who won and the tables and figure behind it; empty where the exam has not been sat."""
    if not read_metrics(stages, "evaluation"):
        return {}
    results = read_results()
    table = tabulate_results(results)
    unit = table.columns[0]
    best = next(arm for arm in table.index if arm != UPPER_MARK)
    figure = plot_exam(results)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return {
        "best": best,
        "value": f"{table.loc[best, unit]} (95 % interval {table.loc[best, '95 % interval']})",
        "unit": unit,
        "read_out": read_out(results),
        "caution": caution(results),
        "table": table,
        "measures": tabulate_measures(results),
        "figure": render_figure(image.getvalue(), describe_figure("plot_exam(results)")),
    }


def describe_gate(stages: Mapping[str, StageRun]) -> dict[str, Any]:
    """The gate's verdict and the figures that it was judged by; empty where it has not been measured."""
    found = read_metrics(stages, "gate")
    if not found:
        return {}
    if found["passed"]:
        verdict = "Passed"
    elif stages["gate"].state is State.FAILED:
        verdict = "Not passed: the run stopped here"
    else:
        verdict = "Not passed, and overridden by gate.override"
    predictors = {name: row for name, row in found.items() if isinstance(row, dict) and "spearman" in row}
    rows = {
        name: {
            "rank correlation": f"{row['spearman']:.2f}",
            "its 95 % interval": "{:.2f} to {:.2f}".format(*row["spearman_ci95"]),
            "R²": f"{row['r2']:.2f}",
            "R²'s 95 % interval": "{:.2f} to {:.2f}".format(*row["r2_ci95"]),
        }
        for name, row in predictors.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("predictor of the gain")
    return {"verdict": verdict, "threshold": found["threshold"], "sets": found["sets"], "table": table}


def tabulate_guards(generators: Mapping[str, Any]) -> pd.DataFrame:
    """By seed, from the first to the last fifth of RL's steps: rewarded and guard influence, and shares of rubrics.

    Beside them the steps taken, and that after which the generator was kept.
    """
    rows, endings = {}, generators.get("endings", {})
    for seed, phases in generators.get("phases", {}).items():
        first, last = phases["first fifth"], phases["last fifth"]
        rows[seed] = {key.replace("_", " "): f"{first[key]:.3g} → {last[key]:.3g}" for key in GUARDED if key in first}
        if ending := endings.get(seed):
            rows[seed] |= {"steps": f"{ending['steps']} of {ending['planned']}", "kept": f"after step {ending['kept']}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")


def list_stopped(generators: Mapping[str, Any]) -> dict[str, str]:
    """By seed, why a guard stopped RL early."""
    endings = generators.get("endings", {})
    return {seed: ending["stopped"] for seed, ending in endings.items() if ending["stopped"]}


def list_left_out(corpus: Mapping[str, Any]) -> list[str]:
    """What of the user's files is neither document nor question, and how often."""
    told = {
        "documents and chunks that repeat others": corpus.get("duplicates_dropped", 0),
        "questions that repeat others": corpus.get("repeated_questions_dropped", 0),
        "questions that could not be used": corpus.get("questions_left_out", 0),
    } | {f"documents: {reason}": count for reason, count in corpus.get("left_out", {}).items()}
    return [f"{count} {what}" for what, count in told.items() if count]


def tabulate_refused(initial: Mapping[str, Any], final: Mapping[str, Any]) -> pd.DataFrame:
    """What models wrote that could not be used, by set, over seeds, with the reasons."""
    sets = {"initial synthesis": initial.get("sets", {}), **final.get("arms", {})}
    rows = []
    for name, by_seed in sets.items():
        for kind in ("rubrics", "pairs"):
            counts = [seed[kind] for seed in by_seed.values()]
            total = {key: sum(row[key] for row in counts) for key in ("requested", "valid", "invalid", "failed")}
            if total["requested"]:
                reasons = sum_counts([row["problems"] for row in counts])
                rows.append({"set": name, "of": kind, **total, "reasons": join_counts(reasons)})
    return pd.DataFrame(rows).set_index("set") if rows else pd.DataFrame()


def tabulate_quality(final: Mapping[str, Any]) -> pd.DataFrame:
    """What screening removed from each arm's valid pairs, and what it only flagged, over seeds."""
    rows = {}
    for arm, by_seed in final.get("arms", {}).items():
        screened = [seed["quality"] for seed in by_seed.values()]
        rows[arm] = {key: sum(row[key] for row in screened) for key in ("valid", "kept")} | {
            key: join_counts(sum_counts([row[key] for row in screened])) for key in ("removed", "flagged")
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def sum_counts(parts: list[dict[str, int]]) -> dict[str, int]:
    names = sorted({name for part in parts for name in part})
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def join_counts(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} × {name}" for name, count in sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def tabulate_costs(stages: Mapping[str, StageRun]) -> pd.DataFrame:
    """Requests, tokens and dollars of the stages that have run, with their sums; empty where none asked a model."""
    if not any(read_metrics(stages, name).get("ledger") for name in stages):
        return pd.DataFrame()
    table = tabulate_stages().drop(index="all", level="stage")
    table = table[[bool(read_metrics(stages, stage)) for stage, _ in table.index]]
    table.loc[("all of these", ""), :] = table.sum()
    shown = {name: table[name].map(("{:,.2f}" if name == "usd" else "{:,.0f}").format) for name in table.columns}
    return pd.DataFrame(shown).rename(columns=lambda name: name.replace("_", " "))


def tabulate_timings(stages: list[StageRun]) -> pd.DataFrame:
    """State and seconds of every stage."""
    rows = {
        stage.name: {
            "state": str(stage.state),
            "seconds": "not kept" if stage.seconds is None else f"{stage.seconds:,.1f}",
            "executed notebook": stage.executed.as_posix(),
        }
        for stage in stages
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


def list_versions() -> dict[str, str]:
    """Python, this package and every package that it asks for by name, as they are installed now."""
    names = [re.split(r"[^\w.-]", line)[0] for line in requires(DISTRIBUTION) or [] if "extra ==" not in line]
    system = f"{platform.system()}, {platform.machine()}"
    return {"Python": platform.python_version(), "system": system} | {
        name: version(name) for name in [DISTRIBUTION, *sorted(names)]
    }


def describe_commit() -> str:
    """The commit that is checked out, and the tracked files that differ from it; "none" outside git."""
    head, changed = run_git("rev-parse", "HEAD"), run_git("diff", "HEAD", "--name-only").splitlines()
    if not head:
        return "none"
    more = [f"and {len(changed) - MOST_LISTED} more"] if len(changed) > MOST_LISTED else []
    return f"{head}; changed since: {', '.join([*changed[:MOST_LISTED], *more]) or 'nothing'}"


def run_git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
