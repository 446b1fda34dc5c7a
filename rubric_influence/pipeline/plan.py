"""The plan of a run, stage by stage, made without any model's weights.

Loads and checks the profile, reads the corpus and the local tokenizers where they are there, builds the arguments of
every trainer, and tells how much each stage will ask for, train on and score. What is not there (documents to be
downloaded, models of the hub) is listed as unchecked, and what depends on it is planned from the profile or "unknown".
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rubric_influence.core.checks import refuse
from rubric_influence.core.config import Config, FineTuning
from rubric_influence.core.corpus_sections import LabCorpus
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.paths import list_arms
from rubric_influence.data.corpora import Corpus, tell_left_out
from rubric_influence.data.documents import check_lengths
from rubric_influence.data.exams import SPLITS
from rubric_influence.models.chat import PLAIN_TEMPLATE
from rubric_influence.models.embedders import check_embedder
from rubric_influence.models.loading import check_source, load_settings, load_tokenizer
from rubric_influence.pipeline.preflight import check_target
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.rl import grpo
from rubric_influence.training import fine_tuning

UNKNOWN = float("nan")  # goes through sums and products as it should
COLUMNS = ("rubrics", "pairs", "prompts", "scored", "steps", "batch", "tokens")
Figures = dict[str, float]  # what is counted -> how many


@dataclass(frozen=True)
class Plan:
    """`size` counts documents, and exam questions by split; `stages` has the figures of a stage, or "stage: arm".

    Figures are over all seeds, by their names in COLUMNS; one that does not apply is left out. rubrics, pairs: records
    that the stage makes, all being valid. prompts: questions to a model. scored: pairs whose influence is computed.
    steps: optimizer steps. batch: sequences in one step. tokens: read and written at most, if nothing has to be asked
    for again (synthesis.attempts times as many at worst). NaN: unknown before the corpus's files are there.
    """

    size: Figures
    stages: dict[str, Figures]
    unchecked: list[str]  # what could not be looked at, and why
    notes: list[str]  # what a user might not expect

    def describe(self) -> str:
        """The corpus's size, a row a stage, what to know, and what is not checked."""
        heading = ", ".join(f"{show(count)} {name}" for name, count in self.size.items())
        return "\n".join(
            [heading, self.tabulate().to_string(), "", *self.notes, "not checked: weights", *self.unchecked]
        )

    def tabulate(self) -> pd.DataFrame:
        """A row a stage, as text."""
        rows = {stage: [show(figures.get(column)) for column in COLUMNS] for stage, figures in self.stages.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))


def show(figure: float | None) -> str:
    return "" if figure is None else "unknown" if np.isnan(figure) else f"{figure:,.0f}"


def make_plan(config: Config) -> Plan:
    """The plan of a profile. Raises ValueError for what would stop a stage later, as far as it can be seen now."""
    size, corpus, unchecked = measure_corpus(config)
    notes, unknown = check_models(config, corpus)
    check_combinations(config, size)
    build_trainer_arguments(config)
    return Plan(size, plan_stages(config, size), unchecked + unknown, tell_left_out(corpus.report) + notes)


def measure_corpus(config: Config) -> tuple[Figures, Corpus, list[str]]:
    """The corpus's size as in Plan, the corpus (empty if not there) and what could not be looked at."""
    section = config.corpus
    missing = [path for path in section.inputs if not Path(path).exists()]
    if isinstance(section, LabCorpus) or not missing:  # a lab without its field's table is an error
        corpus = build_corpus(section)
        return {"documents": len(corpus.documents), **corpus.report["exam"]}, corpus, []
    unchecked = [f"corpus: nothing at {path} yet" for path in dict.fromkeys(missing)]
    if section.max_documents or section.max_exam_items:
        unchecked.append("corpus: planned as if it had corpus.max_documents documents and max_exam_items questions")
    items = section.max_exam_items or UNKNOWN
    exam = {split: float(np.round(getattr(section, split) * items)) for split in SPLITS[:-1]}
    rest = items - sum(exam.values())
    return {"documents": section.max_documents or UNKNOWN, **exam, "test": rest}, Corpus([], [], {}), unchecked


def check_models(config: Config, corpus: Corpus) -> tuple[list[str], list[str]]:
    """Check local models: tokenizers, context and prompts' lengths. Returns notes, and what could not be checked."""
    settings, prompts, embedder, notes, unchecked = config.synthesis, config.prompts, config.quality.embedder, [], []
    if embedder:
        missing = f"{embedder} is taken for a model of the hub"
        try:
            folder = check_source(ModelSpec(path=embedder))
        except ValueError as error:  # as with models, below
            folder, missing = None, str(error)
        if folder is None:
            unchecked.append(f"quality.embedder: {missing}")
        else:
            check_embedder(embedder)
    for role, template, written in (
        ("rubric_generator", prompts.rubric, settings.max_rubric_tokens),
        ("teacher", prompts.pair, settings.max_pair_tokens),
        ("target", "", 0),
    ):
        spec: ModelSpec = getattr(config.models, role)
        why = f"{spec.path} is taken for a model of the hub"
        if spec.endpoint:
            why = f"{spec.path} at {spec.endpoint.base_url}, and the prompts' lengths there"
        try:
            folder = None if spec.endpoint else check_source(spec)
        except ValueError as error:  # an earlier step may make the folder, as `standins` does
            folder, why = None, str(error)
            if role == "rubric_generator" and config.warm_start:
                why += "; `rubric-influence model warm-start` makes it"
        if folder is None:
            unchecked.append(f"models.{role}: {why}")
            continue
        tokenizer = load_tokenizer(spec)
        if tokenizer.chat_template.endswith(PLAIN_TEMPLATE):
            notes.append(f"models.{role}: {spec.path} has no chat template; it reads 'Question: ...', 'Answer: ...'")
        if role == "target":
            check_target(config, corpus.exam, tokenizer)
        else:
            room = getattr(load_settings(spec), "max_position_embeddings", None)
            if room and settings.max_prompt_tokens + written > room:
                raise ValueError(
                    f"models.{role}: prompts of synthesis.max_prompt_tokens ({settings.max_prompt_tokens}) and "
                    f"{written} tokens of output exceed the {room} positions of {spec.path}; lower max_prompt_tokens"
                )
            check_lengths(corpus.documents, tokenizer, template, settings.max_prompt_tokens)
    return notes, unchecked


def check_combinations(config: Config, size: Figures) -> None:
    """Raise one ValueError for all parameters that do not go together."""
    problems = []
    clusters, validation, warmup = config.influence.clusters, size["validation"], config.warmup
    if config.influence.directions == "clusters" and clusters > validation:
        problems.append(
            f"influence.clusters ({clusters}) exceeds the {validation:.0f} validation questions; lower it or raise "
            "corpus.validation"
        )
    if (asked := config.rl.documents_per_step) > size["documents"]:
        problems.append(f"rl.documents_per_step ({asked}) exceeds the {size['documents']:.0f} documents; lower it")
    if config.rl.vllm != "off" and config.synthesis.constrained:
        problems.append(
            f"rl.vllm is {config.rl.vllm!r}, but with synthesis.constrained rubrics are not sampled by it; set rl.vllm "
            "to off or synthesis.constrained to false"
        )
    for role in ("rubric_generator", "target"):
        if getattr(config.models, role).endpoint:
            problems.append(f"models.{role} is trained, which an endpoint's model cannot be; give a folder or hub name")
    first = size["documents"] * config.budget.initial_pairs
    pool = (first - count_chosen(config, first)) or first  # what the warm-up leaves; all, if it leaves none
    if pool < 2 * config.gate.set_size:
        problems.append(
            f"gate.set_size ({config.gate.set_size}) is over half of the {pool:.0f} initial pairs that a seed's gate "
            "draws from; lower it, raise budget.initial_pairs or lower warmup.fraction"
        )
    if warmup.checkpoints > warmup.epochs:
        problems.append(f"warmup.checkpoints ({warmup.checkpoints}) exceeds warmup.epochs ({warmup.epochs}); lower it")
    refuse("these parameters do not go together:", problems)


def count_chosen(config: Config, pairs: float) -> float:
    """How many of a seed's initial pairs the warm-up trains on."""
    return np.maximum(1, np.round(config.warmup.fraction * pairs))


def build_trainer_arguments(config: Config) -> None:
    """Let TRL and peft check what the profile asks of them. Raises ValueError with their message."""
    seed, folder = config.seeds[0], "unused"  # nothing is written
    for section, build in (
        ("rl", lambda: grpo.build_arguments(config, seed, folder)),
        ("warmup", lambda: fine_tuning.build_arguments(config.warmup, seed, folder)),
        ("finetuning", lambda: fine_tuning.build_arguments(config.finetuning, seed, folder)),
        ("lora", lambda: fine_tuning.build_lora(config.lora)),
    ):
        try:
            build()
        except (ValueError, TypeError, ImportError) as error:
            raise ValueError(f"{section}: its trainer refuses these parameters: {error}") from error


def plan_stages(config: Config, size: Figures) -> dict[str, Figures]:
    """Stage -> figures, over all seeds (see Plan)."""
    settings, gate, rl, seeds, arms = config.synthesis, config.gate, config.rl, len(config.seeds), list_arms(config)
    ask_rubric = settings.max_prompt_tokens + settings.max_rubric_tokens
    ask_pair = ask_rubric + settings.max_pair_tokens  # the prompt holds the rubric
    judge = config.warmup.max_tokens  # a pair that is scored

    def synthesise(rubrics: float, pairs: float, written: float) -> Figures:
        """`written`: rubrics that a model is asked for, the others being fixed."""
        tokens = written * ask_rubric + pairs * ask_pair
        return dict(rubrics=rubrics, pairs=pairs, prompts=written + pairs, tokens=tokens)

    def train(pairs: float, tuning: FineTuning) -> Figures:
        steps, tokens = np.ceil(pairs / tuning.batch_size) * tuning.epochs, pairs * tuning.epochs * tuning.max_tokens
        return dict(pairs=pairs, steps=steps, batch=tuning.batch_size, tokens=tokens)

    first, budget = (size["documents"] * count for count in (config.budget.initial_pairs, config.budget.final_pairs))
    batch = rl.documents_per_step * rl.group_size
    rollouts, answered = rl.steps * batch, rl.steps * batch * rl.pairs_per_rubric
    optimised = synthesise(rollouts, answered, rollouts) | dict(scored=answered, steps=rl.steps, batch=batch)
    optimised["tokens"] += rollouts * ask_rubric + answered * judge * config.warmup.checkpoints
    stages: dict[str, Figures] = {
        "initial": synthesise(first, first, first),
        "warmup": train(count_chosen(config, first), config.warmup),
        "influence": dict(scored=first, tokens=first * judge * config.warmup.checkpoints),
        "gate": dict(
            pairs=gate.sets * gate.set_size,
            prompts=gate.sets * size["guard"],
            steps=gate.sets * np.ceil(gate.set_size / gate.batch_size) * gate.epochs,
            batch=gate.batch_size,
            tokens=gate.sets * judge * (gate.set_size * gate.epochs + size["guard"]),
        ),
        "generators": optimised,
    }
    for arm in arms:
        asks = arm in ("initial", "influence_filtered", "optimised")
        figures = synthesise(0 if arm == "no_rubric" else budget, budget, budget if asks else 0)
        # Half of the filtered arm's candidates are the initial arm's.
        stages[f"final: {arm}"] = figures | (dict(scored=2 * budget) if arm == "influence_filtered" else {})
    stages |= {f"finetuning: {arm}": train(budget, config.finetuning) for arm in arms}
    for figures in stages.values():
        figures.update({name: figure * seeds for name, figure in figures.items() if name != "batch"})
    return stages | {"evaluation": dict(prompts=size["test"] * (len(arms) * seeds + 1))}
