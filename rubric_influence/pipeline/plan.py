"""The plan of a run, stage by stage, made without any model's weights.

Loads and checks the profile, reads the corpus and the local tokenizers where they are there, builds the arguments of
every trainer, and prints how much each stage will ask for, train on and score. What is not there (documents to be
downloaded, models of the hub) is listed as unchecked, and what depends on it is planned from the profile or "unknown".
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoConfig

from rubric_influence.core.config import Config, LabCorpus, ModelSpec
from rubric_influence.core.paths import list_arms
from rubric_influence.core.records import Document
from rubric_influence.data.documents import check_lengths
from rubric_influence.data.exams import SPLITS
from rubric_influence.models.loading import check_source, load_tokenizer
from rubric_influence.pipeline.stages.corpus import build_corpus, check_pairs_fit
from rubric_influence.rl import grpo as rl
from rubric_influence.training import fine_tuning as sft

UNKNOWN = float("nan")  # goes through sums and products as it should
COLUMNS = ("rubrics", "pairs", "prompts", "scored", "steps", "batch", "tokens")


@dataclass(frozen=True)
class Size:
    """How large a corpus is; NaN where that is not known before its files are there."""

    documents: float
    exam: dict[str, float]  # questions by split


@dataclass(frozen=True)
class Plan:
    """`stages` maps a stage (for arms "stage: arm") to its figures, each a key of COLUMNS, over all seeds.

    rubrics, pairs: records that it makes, all being valid. prompts: questions to a model. scored: pairs whose
    influence is computed. steps: optimizer steps. batch: sequences in one step. tokens: read and written at most, if
    nothing has to be asked for again (synthesis.attempts times as many at worst). NaN is unknown; a figure that does
    not apply to a stage is left out.
    """

    size: Size
    stages: dict[str, dict[str, float]]
    unchecked: list[str]  # what could not be looked at, and why

    def describe(self) -> str:
        """The corpus's size, a row a stage, and what is not checked."""
        counts = {"documents": self.size.documents} | self.size.exam
        heading = ", ".join(f"{show(count)} {name}" for name, count in counts.items())
        return "\n".join([heading, self.tabulate().to_string(), "", "not checked: weights", *self.unchecked])

    def tabulate(self) -> pd.DataFrame:
        """A row a stage, as text."""
        rows = {stage: [show(figures.get(column)) for column in COLUMNS] for stage, figures in self.stages.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))


def show(figure: float | None) -> str:
    return "" if figure is None else "unknown" if np.isnan(figure) else f"{figure:,.0f}"


def make_plan(config: Config) -> Plan:
    """The plan of a profile. Raises ValueError for what would stop a stage later, as far as it can be seen now."""
    size, documents, unchecked = measure_corpus(config)
    unchecked += check_models(config, documents)
    check_combinations(config, size)
    build_trainer_arguments(config)
    return Plan(size, plan_stages(config, size), unchecked)


def measure_corpus(config: Config) -> tuple[Size, list[Document], list[str]]:
    """The corpus's size, its documents ([] if not there) and what could not be looked at."""
    section = config.corpus
    paths = [section.field] if isinstance(section, LabCorpus) else [section.documents, section.exam]
    missing = [path for path in paths if not Path(path).exists()]
    if not missing or isinstance(section, LabCorpus):  # a lab without its field's table is an error
        corpus = build_corpus(section)
        return Size(len(corpus.documents), corpus.report["exam"]), corpus.documents, []
    unchecked = [f"corpus: nothing at {path} yet" for path in dict.fromkeys(missing)]
    documents = section.max_documents or UNKNOWN
    items = section.max_exam_items or UNKNOWN
    exam = {split: float(np.round(getattr(section, split) * items)) for split in SPLITS[:-1]}
    if section.max_documents or section.max_exam_items:
        unchecked.append("corpus: planned as if it had corpus.max_documents documents and max_exam_items questions")
    return Size(documents, exam | {"test": items - sum(exam.values())}), [], unchecked


def check_models(config: Config, documents: list[Document]) -> list[str]:
    """Check tokenizers, context lengths and the prompts' lengths of local models; returns what could not be."""
    settings, prompts = config.synthesis, config.prompts
    asked = {
        "rubric_generator": (prompts.rubric, settings.max_rubric_tokens),
        "teacher": (prompts.pair, settings.max_pair_tokens),
        "target": (None, 0),
    }
    unchecked = []
    for role, (template, written) in asked.items():
        spec: ModelSpec = getattr(config.models, role)
        if spec.engine == "openai":
            unchecked.append(f"models.{role}: {spec.path} at {spec.endpoint.base_url}, and the prompts' lengths there")
            continue
        try:
            folder = check_source(spec)
        except ValueError as error:  # made by an earlier step, perhaps, as stand-ins are
            unchecked.append(f"models.{role}: {error}")
            continue
        if folder is None:
            unchecked.append(f"models.{role}: {spec.path} is taken for a model of the hub")
            continue
        tokenizer = load_tokenizer(spec)
        if template is None:
            check_pairs_fit(config)
            continue
        room = getattr(AutoConfig.from_pretrained(folder, trust_remote_code=False), "max_position_embeddings", None)
        if room and settings.max_prompt_tokens + written > room:
            raise ValueError(
                f"models.{role}: prompts of synthesis.max_prompt_tokens ({settings.max_prompt_tokens}) and {written} "
                f"tokens of output exceed the {room} positions of {spec.path}; lower max_prompt_tokens"
            )
        check_lengths(documents, tokenizer, template, settings.max_prompt_tokens)
    return unchecked


def check_combinations(config: Config, size: Size) -> None:
    """Raise one ValueError for all parameters that do not go together."""
    problems = []
    if config.influence.directions == "clusters" and config.influence.clusters > size.exam["validation"]:
        problems.append(
            f"influence.clusters ({config.influence.clusters}) exceeds the {size.exam['validation']:.0f} validation "
            "questions; lower it or raise corpus.validation"
        )
    if (asked := config.rl.documents_per_step) > size.documents:
        problems.append(f"rl.documents_per_step ({asked}) exceeds the {size.documents:.0f} documents; lower it")
    if config.rl.vllm != "off" and config.synthesis.constrained:
        problems.append(
            f"rl.vllm is {config.rl.vllm!r}, but with synthesis.constrained rubrics are not sampled by it; set rl.vllm "
            "to off or synthesis.constrained to false"
        )
    for role in ("rubric_generator", "target"):
        if getattr(config.models, role).engine == "openai":
            problems.append(f"models.{role} is trained, which an endpoint's model cannot be; give a folder or hub name")
    pool = measure_pool(config, size)
    if pool < 2 * config.gate.set_size:
        problems.append(
            f"gate.set_size ({config.gate.set_size}) is over half of the {pool:.0f} initial pairs that a seed's gate "
            "draws from; lower it, raise budget.initial_pairs or lower warmup.fraction"
        )
    if config.warmup.checkpoints > config.warmup.epochs:
        problems.append(
            f"warmup.checkpoints ({config.warmup.checkpoints}) exceeds warmup.epochs ({config.warmup.epochs}); lower it"
        )
    if problems:
        raise ValueError("\n  ".join(["these parameters do not go together:", *problems]))


def measure_pool(config: Config, size: Size) -> float:
    """How many initial pairs of a seed the gate draws from: what the warm-up leaves, or else all."""
    first = size.documents * config.budget.initial_pairs
    left = first - np.maximum(1, np.round(config.warmup.fraction * first))
    return first if left == 0 else left


def build_trainer_arguments(config: Config) -> None:
    """Let TRL and peft check what the profile asks of them. Raises ValueError with their message."""
    with tempfile.TemporaryDirectory() as folder:
        for section, build in (
            ("rl", lambda: rl.build_arguments(config, config.seeds[0], folder)),
            ("warmup", lambda: sft.build_arguments(config.warmup, config.seeds[0], folder)),
            ("finetuning", lambda: sft.build_arguments(config.finetuning, config.seeds[0], folder)),
            ("lora", lambda: sft.build_lora(config.lora)),
        ):
            try:
                build()
            except (ValueError, TypeError, ImportError) as error:
                raise ValueError(f"{section}: its trainer refuses these parameters: {error}") from error


def plan_stages(config: Config, size: Size) -> dict[str, dict[str, float]]:
    """Stage -> figures, over all seeds (see Plan)."""
    seeds, documents, models = len(config.seeds), size.documents, config.synthesis
    ask_rubric = models.max_prompt_tokens + models.max_rubric_tokens
    ask_pair = models.max_prompt_tokens + models.max_rubric_tokens + models.max_pair_tokens  # the rubric is asked with
    judge = config.warmup.max_tokens  # a pair that is scored

    def synthesise(rubrics: float, pairs: float, written: bool = True) -> dict[str, float]:
        asked = rubrics if written else 0
        figures = dict(rubrics=rubrics, pairs=pairs, prompts=asked + pairs)
        figures["tokens"] = asked * ask_rubric + pairs * ask_pair
        return {column: figure * seeds for column, figure in figures.items()}

    def train(pairs: float, settings: sft.FineTuning) -> dict[str, float]:
        steps = np.ceil(pairs / settings.batch_size) * settings.epochs
        tokens = pairs * settings.epochs * settings.max_tokens
        return dict(pairs=pairs * seeds, steps=steps * seeds, batch=settings.batch_size, tokens=tokens * seeds)

    first, budget = documents * config.budget.initial_pairs, documents * config.budget.final_pairs
    chosen = np.maximum(1, np.round(config.warmup.fraction * first))
    batch = config.rl.documents_per_step * config.rl.group_size
    rollouts = config.rl.steps * batch
    answered = rollouts * config.rl.pairs_per_rubric
    trained = synthesise(rollouts, answered)
    trained |= dict(scored=answered * seeds, steps=config.rl.steps * seeds, batch=batch)
    trained["tokens"] += (rollouts * ask_rubric + answered * judge * config.warmup.checkpoints) * seeds
    scored, gate = first * seeds, config.gate
    sets = gate.sets * seeds
    retrained = gate.set_size * gate.epochs
    stages = {
        "initial": synthesise(first, first),
        "warmup": train(chosen, config.warmup),
        "influence": dict(scored=scored, tokens=scored * judge * config.warmup.checkpoints),
        "gate": dict(
            pairs=sets * gate.set_size,
            prompts=sets * size.exam["guard"],
            steps=sets * np.ceil(gate.set_size / gate.batch_size) * gate.epochs,
            batch=gate.batch_size,
            tokens=sets * judge * (retrained + size.exam["guard"]),
        ),
        "generators": trained,
    }
    for arm in list_arms(config):
        figures = synthesise(0 if arm == "no_rubric" else budget, budget, arm in ("initial", "optimised"))
        if arm == "influence_filtered":  # the other half of its candidates are the initial arm's
            figures = synthesise(budget, budget) | dict(scored=2 * budget * seeds)
        stages[f"final: {arm}"] = figures
    for arm in list_arms(config):
        stages[f"finetuning: {arm}"] = train(budget, config.finetuning)
    sittings = len(list_arms(config)) * seeds + 1
    stages["evaluation"] = dict(prompts=size.exam["test"] * sittings)
    return stages
