"""Stage 4: the influence of every initial pair on the warmed-up target, and where pairs lie beside expert questions."""

import numpy as np
import pandas as pd

from rubric_influence.core.config import Config
from rubric_influence.core.files import read_records, write_json
from rubric_influence.core.paths import EXAM, INFLUENCE, INITIAL, METRICS, WARMUP, seed_folder
from rubric_influence.core.records import Answered, ExamItem, keep_valid
from rubric_influence.influence.spaces import FEWEST, SpaceComparison, compare_spaces, draw_map
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.jobs import run_seeds
from rubric_influence.pipeline.sets import read_pairs, read_rubrics
from rubric_influence.pipeline.stages.warmup import choose_pairs
from rubric_influence.rl.scores import GUARD, VALIDATION, stack_scores
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.training.fine_tuning import list_checkpoints, load_fine_tuned

SHOWN = 150  # at most so many pairs of a kind are compared


def score_initial_sets(config: Config) -> pd.DataFrame:
    """One row a pair: seed, ids, rubric, texts, whether the warm-up trained on it, influence along each direction.

    Each seed's rows are also in data/influence. metrics/influence.json has the mean score, the share of positive scores
    and the rank correlation of the scores for validation and guard questions, which are different questions.
    """
    tables = run_seeds(score_initial_set, config)
    summary = {
        f"seed-{seed}": {
            "pairs": len(table),
            "mean": round(float(table[VALIDATION].mean()), 6),
            "positive_share": round(float((table[VALIDATION] > 0).mean()), 4),
            "validation_guard_spearman": round(float(table[VALIDATION].corr(table[GUARD], method="spearman")), 4),
        }
        for seed, table in tables.items()
    }
    write_json(METRICS / "influence.json", summary)
    return pd.concat(tables.values(), ignore_index=True)


def score_initial_set(config: Config, seed: int) -> pd.DataFrame:
    """One seed's rows, also written to data/influence/seed-N.parquet."""
    pairs = read_pairs(INITIAL, seed)
    rubrics = {rubric.id: rubric.text for rubric in read_rubrics(INITIAL, seed)}
    trained_on = {pair.id for pair in choose_pairs(pairs, config.warmup, seed)}
    scorer = TargetScorer(config, seed_folder(WARMUP, seed), read_records(EXAM, ExamItem), seed)
    columns = ["seed", "pair_id", "document_id", "rubric", "question", "answer", "in_warmup"]
    rows = [
        (seed, p.id, p.document_id, rubrics.get(p.rubric_id, ""), p.question, p.answer, p.id in trained_on)
        for p in pairs
    ]
    scores = pd.DataFrame(stack_scores(scorer(pairs)).numpy(), columns=scorer.directions.names)
    table = pd.DataFrame(rows, columns=columns).join(scores)
    INFLUENCE.mkdir(parents=True, exist_ok=True)
    table.to_parquet(f"{seed_folder(INFLUENCE, seed)}.parquet", index=False)
    return table


def tabulate_extremes(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """The pairs with the highest and the lowest influence."""
    ranked = scores.sort_values(VALIDATION, ascending=False, kind="stable")
    return pd.concat([ranked.head(count), ranked.tail(count)])[[VALIDATION, "rubric", "question", "answer"]]


def compare_initial_spaces(config: Config) -> tuple[SpaceComparison, pd.DataFrame] | None:
    """Validation questions beside initial pairs, of the first seed: numbers, and a row a pair with its place on maps.

    Columns: kind (expert, synthetic), question, answer, and x and y in either space; also written to
    data/influence/spaces.parquet, the numbers to metrics/spaces.json. None, and no numbers, where there are fewer than
    spaces.FEWEST of a kind.
    """
    seed, tokens, rng = config.seeds[0], config.influence.batch_tokens, np.random.default_rng(config.seeds[0])
    validation = [item for item in read_records(EXAM, ExamItem) if item.split == VALIDATION]
    kinds: dict[str, list[Answered]] = {"expert": [*validation], "synthetic": [*keep_valid(read_pairs(INITIAL, seed))]}
    if min(map(len, kinds.values())) < FEWEST:
        write_json(METRICS / "spaces.json", {})
        return None
    drawn = {kind: [pairs[row] for row in sorted(rng.permutation(len(pairs))[:SHOWN])] for kind, pairs in kinds.items()}
    tokenizer, template, limit = load_tokenizer(config.models.target), config.prompts.answer, config.warmup.max_tokens
    expert, synthetic = (
        [encode(tokenizer, pair.question, pair.answer, template, limit) for pair in pairs] for pairs in drawn.values()
    )
    model = load_fine_tuned(config.models.target, list_checkpoints(seed_folder(WARMUP, seed))[-1])
    found = compare_spaces(model, expert, synthetic, tokens, seed)
    rows = [(kind, pair.question, pair.answer) for kind, pairs in drawn.items() for pair in pairs]
    maps = {"embedding": draw_map(found.embedding_nn, seed), "gradient": draw_map(found.gradient_nn, seed)}
    places = pd.DataFrame(np.hstack([*maps.values()]), columns=[f"{space}_{axis}" for space in maps for axis in "xy"])
    table = pd.DataFrame(rows, columns=["kind", "question", "answer"]).join(places)
    table.to_parquet(INFLUENCE / "spaces.parquet", index=False)
    write_json(METRICS / "spaces.json", found.report())
    return found, table
