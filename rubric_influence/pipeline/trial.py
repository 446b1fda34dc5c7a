"""A set of pairs, of any origin, tried on its target: what does fine-tuning on it gain in the exam?"""

from pathlib import Path

from rubric_influence.core.config import Config
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.paths import UNTUNED
from rubric_influence.core.records import ExamItem
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.evaluation.results import UNITS, Unit
from rubric_influence.influence.samples import Sample, list_shards, read_samples, read_shard
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.jobs import run_jobs
from rubric_influence.pipeline.preflight import check_target
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.pipeline.stages.evaluation import Examined, compare_sittings, examine
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints

TRIED = "set"


def try_set(config: Config, path: Path) -> dict:
    """The figures of the target as it is and after fine-tuning on the set (`compare_sittings`), over all seeds.

    `path`: JSON Lines, or a folder of Parquet shards, with id, question and answer. The profile names target, training
    and exam. Adapters stay in scratch, so that a run that was stopped goes on. Raises ValueError for no pairs, or for a
    target and an exam that do not go together.
    """
    pairs = read_samples(path) if path.is_file() else [pair for file in list_shards(path) for pair in read_shard(file)]
    exam = build_corpus(config.corpus).exam
    check_target(config, exam, load_tokenizer(config.models.target))
    items = [item for item in exam if item.split == "test"]
    jobs = [(config, items, None, config.seeds[0]), *((config, items, pairs, seed) for seed in config.seeds)]
    untuned, *tuned = run_jobs(try_seed, jobs, config.machine)
    return compare_sittings(config, {UNTUNED: [untuned] * len(tuned), TRIED: tuned}, UNTUNED) | {"pairs": len(pairs)}


def try_seed(config: Config, items: list[ExamItem], pairs: list[Sample] | None, seed: int) -> Examined:
    """What the target makes of the exam after fine-tuning on the pairs (None: as it is)."""
    if pairs is None:
        return examine(config, items, None)
    spec, settings = config.models.target, config.finetuning
    folder = scratch_folder("trial", fingerprint(spec), pairs, config.prompts, config.lora, settings, seed)
    if not (folder / "tuned").is_dir():
        run = TuningRun(spec, config.prompts, config.lora, settings, seed, name=f"{TRIED}, seed {seed}")
        fine_tune(run, pairs, Workplace(folder / "tuned", folder / "state"))
    return examine(config, items, list_checkpoints(folder / "tuned")[-1])


def describe_trial(found: dict) -> str:
    """A line a measure: before, after, and the gain with its 95 % interval (positive: better)."""
    rows = [f"{found['pairs']} pairs; measure: the target as it is, after fine-tuning on them, gain (95 % interval)"]
    measures = {found["measure"]: {"arms": found["arms"]}} | found["measures"] | found["tasks"]
    for name, figures in measures.items():
        unit, (before, after) = UNITS.get(name, Unit(name)), (figures["arms"][arm] for arm in (UNTUNED, TRIED))
        gain = after[f"gain_over_{UNTUNED}"]
        rows.append(
            f"{unit.name}: {unit.show(before['mean'])}, {unit.show(after['mean'])}, {unit.show(gain['mean'], '+')} "
            f"({unit.span(gain['ci95'], '+')})"
        )
    return "\n".join(rows)
