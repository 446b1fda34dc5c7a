"""How long each stage will take on this machine: a little of each kind of work is done with the profile's models.

What is measured holds for texts as long as those that were written, and for an idle machine.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rubric_influence.core.config import Config
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import keep_valid
from rubric_influence.core.scratch import Workplace
from rubric_influence.data.corpora import Corpus
from rubric_influence.engines.open import open_engine
from rubric_influence.evaluation.exam import sit
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.pipeline.plan import Plan
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.synthesis.outcomes import PAIRS, RUBRICS, open_ledger
from rubric_influence.synthesis.writing import SynthesisContext, follow_rubrics, write_pairs, write_rubrics
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

ASKED, EXAMINED, RL_STEPS = 48, 16, 2  # rubrics and pairs; questions; steps, of which the first is not counted
FORWARD = 1 / 3  # a forward pass in units of a forward and a backward one (Kaplan et al. 2020, arXiv 2001.08361, 2.1)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Rates:
    """Seconds: for the start of a stage, for opening the models that write, and for one of each kind of work.

    rubric, pair: written. trained: a pair, for one epoch. scored: a pair's influence, or a question's gradient.
    examined: a test question with all its options. update: a step of RL, all included.
    """

    start: float
    opened: float
    rubric: float
    pair: float
    trained: float
    scored: float
    examined: float
    update: float


def measure(work: Callable[[], Made]) -> tuple[Made, float]:
    """What the work makes, and the seconds that it takes."""
    began = time.monotonic()
    return work(), time.monotonic() - began


def measure_rates(config: Config, corpus: Corpus) -> Rates:
    """Rates on this machine with the profile's models; an endpoint is asked for 48 pairs and two steps of RL.

    Nothing is kept. Raises ValueError where too few valid pairs come back to go on with.
    """
    with TemporaryDirectory(prefix="rehearsal-") as name:
        [rates] = run_jobs(rehearse, [(config, corpus, Path(name))], config.machine)
    return rates


def rehearse(config: Config, corpus: Corpus, folder: Path) -> Rates:
    """The rates, measured with the threads of one of the profile's workers."""
    models, settings, seed, tokens = config.models, config.synthesis, config.seeds[0], config.evaluation.batch_tokens
    code = "import rubric_influence.pipeline.stages.generators"  # what a stage imports, nearly all of it PyTorch's
    _, start = measure(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True))
    journal = Journal(folder / "answers.jsonl")
    ledger = open_ledger(settings)
    context = SynthesisContext(config.prompts, settings, seed, journal, ledger)
    (generator, teacher), opened = measure(
        lambda: [
            open_engine(spec, settings.batch_size, journal=journal, ledger=ledger, what=what)
            for spec, what in ((models.rubric_generator, RUBRICS), (models.teacher, PAIRS))
        ]
    )
    documents = corpus.documents[:ASKED]
    rubrics, writing = measure(lambda: write_rubrics(generator, documents, 1, context))
    pairs, teaching = measure(lambda: write_pairs(teacher, follow_rubrics(documents, rubrics), context))
    valid = keep_valid(pairs)
    if len(valid) < 2:
        raise ValueError(f"{len(valid)} of {len(pairs)} pairs are valid, too few to time the rest; look at the prompts")
    once = config.warmup.model_copy(update={"epochs": 1, "checkpoints": 1})
    tuning = TuningRun(models.target, config.prompts, config.lora, once, seed, name="trying fine-tuning")
    log = fine_tune(tuning, valid, Workplace(folder / "warmup", folder / "state"))
    training = next(entry["train_runtime"] for entry in log if "train_runtime" in entry)
    scorer = TargetScorer(config, folder / "warmup", corpus.exam, seed)
    _, scoring = measure(lambda: scorer(valid))
    items = [item for item in corpus.exam if item.split == "test"][:EXAMINED]
    model = load_fine_tuned(models.target, list_checkpoints(folder / "warmup")[-1])
    _, sitting = measure(lambda: sit(model, scorer.tokenizer, items, config.prompts.answer, tokens))
    few = config.model_copy(update={"rl": config.rl.model_copy(update={"steps": RL_STEPS, "checkpoint": "last"})})
    place = Workplace(folder / "generator", folder / "rl")
    steps = [entry["step_time"] for entry in train_rubric_generator(few, documents, teacher, scorer, seed, place)
             if "step_time" in entry]  # fmt: skip
    return Rates(
        start, opened, writing / len(documents), teaching / len(pairs), training / len(valid), scoring / len(valid),
        sitting / len(items), steps[-1],
    )  # fmt: skip


def estimate_seconds(config: Config, plan: Plan, rates: Rates) -> dict[str, float]:
    """Stage -> seconds, seeds side by side as workers and cores allow; NaN where the plan does not know a size."""
    seeds, size = len(config.seeds), plan.size
    judged = seeds * sum(size[split] for split in ("validation", "guard", "dev"))  # whose gradients are directions
    arms = {name: figures for name, figures in plan.stages.items() if name.startswith("final: ")}
    tuned = {name: figures for name, figures in plan.stages.items() if name.startswith("finetuning: ")}

    def write(figures: dict[str, float]) -> float:
        return (figures["prompts"] - figures["pairs"]) * rates.rubric + figures["pairs"] * rates.pair

    gate, stages = config.gate, plan.stages
    work = {
        "initial": seeds * rates.opened + write(stages["initial"]),
        "warmup": stages["warmup"]["pairs"] * config.warmup.epochs * rates.trained,
        "influence": (stages["influence"]["scored"] + judged) * rates.scored * config.warmup.checkpoints,
        "gate": stages["gate"]["pairs"] * gate.epochs * rates.trained
        + stages["gate"]["prompts"] * rates.scored * FORWARD,
        "generators": seeds * rates.opened + judged * rates.scored + stages["generators"]["steps"] * rates.update,
        "final": seeds * rates.opened
        + sum(write(figures) + figures["pairs"] * rates.scored for figures in arms.values())
        + judged * rates.scored,
        "finetuning": sum(figures["pairs"] for figures in tuned.values()) * config.finetuning.epochs * rates.trained,
        "evaluation": stages["evaluation"]["prompts"] * rates.examined,
    }
    cores = (os.cpu_count() or 1) // (config.machine.threads or os.cpu_count() or 1)
    aside = max(1, min(config.machine.workers, seeds, cores))
    return {stage: rates.start + seconds / aside for stage, seconds in work.items()}


def describe_times(seconds: dict[str, float]) -> str:
    """A line a stage, and the sum, in minutes."""
    rows = seconds | {"all": sum(seconds.values())}
    return "\n".join(
        ["minutes, from what was tried here:", *(f"{stage:<12}{taken / 60:8.1f}" for stage, taken in rows.items())]
    )
