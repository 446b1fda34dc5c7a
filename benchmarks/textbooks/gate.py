"""Does influence predict what training gains, on a textbook and a pretrained target?

Pools of pairs: the teacher's on the book's documents, by several rubrics; the glossary's in both directions; and a
false one, the glossary's definitions with other terms. Random sets are drawn from the teacher's pool ("teacher") and
from all pools alike ("mixed"), trained on from the warmed-up target, and what the guard questions gained is held
against every prediction of it. Two gains: answer_nats, of the right answer a token, and option_nats, of the right
option among the options. No guard question is about a module that a document or a pair of any pool is about.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.influence.medquad import tidy
from benchmarks.textbooks.contrast import contrast_gradients
from rubric_influence.core.config import Config
from rubric_influence.core.corpus_sections import BookCorpus
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Answered, ExamItem, QAPair
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.data.book_corpora import build_book
from rubric_influence.data.books import read_book
from rubric_influence.data.corpora import Corpus
from rubric_influence.data.expert_pairs import ask_meanings, ask_terms, swap_meanings
from rubric_influence.engines.open import open_engine
from rubric_influence.evaluation.exam import sit
from rubric_influence.influence.api import Target, load_target
from rubric_influence.influence.checks.agreement import draw_sets, measure_agreement
from rubric_influence.influence.checks.retraining import Recipe, Retraining
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.scorers import open_scorer
from rubric_influence.influence.spaces import compare_spaces
from rubric_influence.models.embedders import Embed, load_embedder
from rubric_influence.models.losses import sweep_losses
from rubric_influence.synthesis.outcomes import open_ledger
from rubric_influence.synthesis.writing import PAIRS, SynthesisContext, deal_rubrics, follow_rubrics, write_pairs
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints

TEACHER, FALSE = "teacher", "false"
POOLS = (TEACHER, "term", "meaning", FALSE)
NOT_OF_GATES = {"warm_start", "rl", "finetuning", "evaluation", "quality", "machine"}  # sections of a profile
DRAWS = (TEACHER, "mixed")  # pools that sets are drawn from
GAINS = ("answer_nats", "option_nats")
# Scores along the gradient of the right answers' loss: the estimator, and whether it is a cosine.
SCORES = {
    "influence": ("adam", False),
    "cosine": ("adam", True),
    "linear": ("linear", False),
    "gradient": ("gradient", False),
    "forward": ("forward", False),
}
CONTRASTS = ("contrast", "contrast_by_length")  # as influence, along the gradient of the contrast among options
AIMED = ("influence", *CONTRASTS)  # by one estimator, in the order of find_directions
PREDICTIONS = (*SCORES, *CONTRASTS, "similarity", "loss", "length")
BY_MEANING = "embedder_similarity"  # one more, where the profile names quality.embedder
HALVES = "halves_cosine"
COMPARED = 100
Figures = dict[str, np.ndarray]  # name -> [candidates]


@dataclass(frozen=True)
class Case:
    """What a gate is measured on: pools of pairs, the pairs of the warm-up, and the questions of two splits."""

    pools: dict[str, list[Answered]]
    warm_up: list[QAPair]
    validation: list[ExamItem]
    guard: list[ExamItem]


def make_case(config: Config, folder: Path) -> Case:
    """The case of a profile with a book. What the teacher answers is kept in `folder`.

    The warm-up's pairs (warmup.fraction of the teacher's, at random) are in no pool; all pools are as large as the
    smallest.
    """
    assert isinstance(config.corpus, BookCorpus)
    corpus, seed = build_book(config.corpus), config.seeds[0]
    pairs = ask_teacher(config, corpus, folder)
    order = np.random.default_rng(seed).permutation(len(pairs))
    used = round(config.warmup.fraction * len(pairs))
    modules = {document.source for document in corpus.documents}
    book = read_book(config.corpus.path, config.corpus.book)
    glossary = [term for term in book.glossary if term.module in modules]
    pools: dict[str, list[Answered]] = {
        TEACHER: [pairs[place] for place in order[used:]],
        "term": list(ask_terms(glossary)),
        "meaning": list(ask_meanings(glossary)),
        FALSE: list(ask_terms(swap_meanings(glossary, seed))),
    }
    size, rng = min(map(len, pools.values())), np.random.default_rng(seed)
    pools = {name: [pool[place] for place in rng.permutation(len(pool))[:size]] for name, pool in pools.items()}
    validation, guard = ([item for item in corpus.exam if item.split == split] for split in ("validation", "guard"))
    return Case(pools, [pairs[place] for place in order[:used]], validation, guard)


def ask_teacher(config: Config, corpus: Corpus, folder: Path) -> list[QAPair]:
    """Valid pairs: budget.initial_pairs a document, by the profile's expert rubrics in turn."""
    settings = config.synthesis
    ledger = open_ledger(settings)
    journal = Journal(folder / "answers.jsonl")
    teacher = open_engine(config.models.teacher, settings.batch_size, ledger=ledger, what=PAIRS, journal=journal)
    rubrics = deal_rubrics(config.prompts.expert_rubrics, "expert", corpus.documents, config.budget.initial_pairs)
    context = SynthesisContext(config.prompts, settings, config.seeds[0], journal, ledger)
    written = write_pairs(teacher, follow_rubrics(corpus.documents, rubrics), context)
    return [pair for pair in written if not pair.problem]


def warm_up(config: Config, pairs: Sequence[QAPair], folder: Path) -> Target:
    """The target after the warm-up; made once, kept in `folder`."""
    spec, run = config.models.target, folder / "warmup"
    if not run.is_dir():
        tuning = TuningRun(spec, config.prompts, config.lora, config.warmup, config.seeds[0], name="warm-up")
        fine_tune(tuning, pairs, Workplace(run, folder / "warmup-state"))
    checkpoint = list_checkpoints(run)[-1]
    settings = {"template": config.prompts.answer, "max_tokens": config.warmup.max_tokens}
    return load_target(spec.path, checkpoint, dtype=spec.dtype, **settings)


def predict(
    config: Config, target: Target, candidates: Sequence[Answered], validation: Sequence[ExamItem], journal: Journal
) -> Figures:
    """What might predict a gain: influence, along several gradients, similarity, the pair's own loss and length.

    What is computed is kept in the journal, with HALVES: for each direction, the cosine of the gradients of two halves
    of the validation questions, 1 where they agree.
    """
    tokens, embedder = config.influence.batch_tokens, config.quality.embedder
    examples, asked = target.encode(candidates), target.encode(validation)

    @cache
    def find_directions() -> torch.Tensor:
        """The gradients of the right answers' loss, of the contrast, and of the contrast by length: [3, d]."""
        groups = [str(place % 2) for place in range(len(asked))]
        likelihood_2d = torch.stack([*validation_gradients(target.model, asked, groups, tokens).values()])
        contrast_22d = contrast_gradients(target, validation, 2, tokens)
        halves_23d = torch.cat([likelihood_2d[:, None], contrast_22d], dim=1)
        agreed = torch.cosine_similarity(*halves_23d, dim=1).tolist()
        journal.add(HALVES, {name: tidy(cosine) for name, cosine in zip(AIMED, agreed, strict=True)})
        shares_2 = torch.tensor([groups.count("0"), groups.count("1")]) / len(groups)
        return torch.einsum("h,hkd->kd", shares_2.to(halves_23d), halves_23d)

    def score(estimator: str, normalise: bool, directions: int = 1) -> np.ndarray:
        settings = {"momentum": False, "batch_tokens": tokens, "normalise": normalise}
        # The forward estimator takes differences of losses, which bfloat16 rounds away.
        model = deepcopy(target.model).float() if estimator == "forward" else target.model
        scorer = open_scorer(estimator, model, find_directions()[:directions], target.moments, **settings)
        return scorer.score(examples).T.numpy()

    measures: dict[tuple[str, ...], Callable[[], np.ndarray]] = {
        AIMED: lambda: score("adam", False, len(AIMED)),  # one pass for three directions
        **{(name,): partial(score, *settings) for name, settings in SCORES.items() if name != "influence"},
        ("similarity",): lambda: embedding_similarity(target.model, examples, asked, tokens).numpy()[None],
        ("loss",): lambda: sweep_losses(target.model, examples, tokens).numpy()[None],
        ("length",): lambda: np.array([[float(len(pair.answer.split())) for pair in candidates]]),
    }
    if embedder:
        measures[BY_MEANING,] = lambda: compare_meanings(load_embedder(embedder), candidates, validation)[None]
    for names, measure in tqdm(measures.items(), desc="predictions"):
        if any(name not in journal for name in names):
            for name, values in zip(names, measure(), strict=True):
                journal.add(name, values.tolist())
    return {name: np.array(journal[name]) for names in measures for name in names}


def compare_pools(config: Config, target: Target, case: Case, journal: Journal) -> dict[str, dict]:
    """How COMPARED pairs of each pool lie beside as many validation questions; kept in the journal."""
    tokens, seed = config.influence.batch_tokens, config.seeds[0]
    order = np.random.default_rng(seed).permutation(len(case.validation))
    expert = target.encode([case.validation[place] for place in order[:COMPARED]])
    for pool, pairs in tqdm(case.pools.items(), desc="spaces"):
        if f"spaces, {pool}" not in journal:
            found = compare_spaces(target.model, expert, target.encode(pairs[:COMPARED]), tokens, seed)
            journal.add(f"spaces, {pool}", found.report())
    return {pool: journal[f"spaces, {pool}"] for pool in case.pools}


def compare_meanings(embed: Embed, candidates: Sequence[Answered], validation: Sequence[ExamItem]) -> np.ndarray:
    """Each candidate's mean cosine with the validation questions and their right answers, [candidates], in [-1, 1]."""
    texts, asked = ([f"{pair.question} {pair.answer}" for pair in group] for group in (candidates, validation))
    return embed(texts) @ embed(asked).mean(axis=0)


def train_sets(
    config: Config, target: Target, case: Case, candidates: Sequence[Answered], sets: np.ndarray, journal: Journal
) -> np.ndarray:
    """What the guard questions gain from each set, [sets, gains], nats, positive where fewer; kept in the journal."""
    gate, tokens = config.gate, config.influence.batch_tokens
    recipe = Recipe(gate.epochs, gate.batch_size, gate.learning_rate)
    held_out, examples = target.encode(case.guard), target.encode(candidates)
    retraining = Retraining(target.model, target.moments, held_out, recipe, batch_tokens=tokens)

    def measure_options() -> float:
        sitting = sit(retraining.copy.model, target.tokenizer, case.guard, target.template, tokens)
        return float(np.nanmean(sitting.option_nats))

    before = measure_options()
    for rows in tqdm(sets, desc="sets", unit="set"):
        if (key := str(rows.tolist())) not in journal:
            gain = retraining.gain([examples[row] for row in rows], seed=int(rows.sum()))
            journal.add(key, [gain, before - measure_options()])
    return np.array([journal[str(rows.tolist())] for rows in sets])


def measure_gate(config: Config) -> dict:
    """All figures of a profile's gate. Resumes where it was stopped.

    pools: the mean of every prediction, and a false pool's place among them. spaces: how each pool lies beside the
    validation questions (SpaceComparison). teacher, mixed: for each gain, R² and rank correlation of every prediction's
    mean over a set, with 95 % intervals.
    """
    folder = scratch_folder("textbooks", "gate", config.model_dump_json(exclude=NOT_OF_GATES))
    case = make_case(config, folder)
    target = warm_up(config, case.warm_up, folder)
    candidates = [pair for pool in case.pools.values() for pair in pool]
    size = len(case.pools[TEACHER])
    journal, seed = Journal(folder / "measured.jsonl"), config.seeds[0]
    found = predict(config, target, candidates, case.validation, journal)
    draws = {
        TEACHER: draw_sets(size, config.gate.sets, config.gate.set_size, seed),
        "mixed": draw_sets(len(candidates), config.gate.sets, config.gate.set_size, seed + 1),
    }
    figures: dict = {
        "sets": config.gate.sets,
        "pairs_a_pool": size,
        "questions": {"validation": len(case.validation), "guard": len(case.guard)},
        HALVES: journal[HALVES],
        "pools": {
            pool: {name: tidy(values[place * size :][:size].mean()) for name, values in found.items()}
            for place, pool in enumerate(POOLS)
        },
        "spaces": compare_pools(config, target, case, journal),
    }
    for draw, sets in draws.items():
        gains = train_sets(config, target, case, candidates, sets, journal)
        figures[draw] = {
            gain: {"mean_gain": tidy(gains[:, column].mean())}
            | {name: judge(values[sets].mean(axis=1), gains[:, column], seed) for name, values in found.items()}
            for column, gain in enumerate(GAINS)
        }
    first = figures[TEACHER][GAINS[0]]
    for name in ("influence", "similarity"):  # once more, where readers look first
        figures |= {f"{name}_{key}": first[name][key] for key in ("r2", "r2_ci95")}
    return figures


def judge(predicted: np.ndarray, gains: np.ndarray, seed: int) -> dict:
    """R² and rank correlation with their intervals; a prediction that is the same for all sets explains nothing."""
    if np.ptp(predicted) == 0:
        return {"r2": 0.0, "r2_ci95": [0.0, 0.0], "spearman": 0.0, "spearman_ci95": [0.0, 0.0]}
    agreement = measure_agreement(predicted, gains, seed)
    return {name: tidy(getattr(agreement, name)) for name in ("r2", "r2_ci95", "spearman", "spearman_ci95")}
