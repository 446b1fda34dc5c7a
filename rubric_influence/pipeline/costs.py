"""What a corpus of any size costs on any number of GPUs, and where the time goes.

One pass of the pipeline without baselines: initial set, warm-up, RL, final set, fine-tuning of one arm. Floating-point
operations, for a model of P active parameters (Kaplan et al. 2020, arXiv 2001.08361, 2.1):

    a token read or written  2 P       a token trained on, all weights  6 P
    a token trained on by LoRA  4 P    (the base's own gradients are not made: forward 2 P, back to the inputs 2 P)
    a token scored  4 P * SCORING      (a LoRA step, times what benchmarks/results/influence.json measures over one)

Attention's own operations are left out: under a tenth at these lengths. hours = operations / (GPUs * peak * share of
the peak that such work reaches). Every assumption is a constant or a field below.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

# benchmarks/results/influence.json, speed/exact_over_plain_step: 1.08 at 22 million parameters.
SCORING = 1.08
PEAK = 989e12  # bf16, dense, a second: NVIDIA H100 SXM data sheet; an H200 has as much
# Shares of the peak. Reading a prompt is bound by arithmetic and training more so: 0.4 is what is commonly reached
# (Chowdhery et al. 2022, arXiv 2204.02311, table 3: 0.21 to 0.46 for dense training). Writing is bound by memory:
# 0.1 takes batches of some hundreds of sequences. These three are assumptions, not measured by us.
READING, TRAINING, WRITING = 0.4, 0.35, 0.1


def assume(value: float, meaning: str) -> float:
    """A field of Setting, with its value and the help of the option that sets it."""
    return field(default=value, metadata={"help": meaning})


@dataclass(frozen=True)
class Setting:
    """The paper's models and schedule (arXiv 2604.00536, section 4 and appendix D), and lengths for medical abstracts.

    The teacher is Qwen3-235B-A22B. `rollouts`: group size 5 over one epoch of 20,000 documents; RL need not grow with
    the corpus.
    """

    generator: float = assume(8e9, "Parameters of the rubric generator.")
    teacher: float = assume(22e9, "Active parameters of the teacher.")
    target: float = assume(8e9, "Parameters of the target.")
    document: float = assume(1000, "Tokens of a document, with the instructions around it.")
    rubric: float = assume(200, "Tokens of a rubric.")
    pair: float = assume(500, "Tokens of a question and its answer.")
    pairs: float = assume(1, "Pairs a document, in the initial and in the final set.")
    rollouts: float = assume(100_000, "Rubrics that RL samples.")
    warmup: float = assume(0.1, "Share of the initial pairs that the warm-up trains on, for one epoch.")
    epochs: float = assume(3, "Epochs of the final fine-tuning.")
    usd_per_million_read: float = assume(0.2, "Price of a million prompt tokens of a hosted teacher.")
    usd_per_million_written: float = assume(0.6, "Price of a million tokens that it writes.")


def time_stages(setting: Setting, documents: int) -> dict[str, float]:
    """Stage -> seconds on one GPU."""
    s = setting

    def write(parameters: float, read: float, written: float) -> float:
        return 2 * parameters * (read / READING + written / WRITING) / PEAK

    def train(parameters: float, tokens: float, each: int) -> float:
        return each * parameters * tokens / TRAINING / PEAK

    rubric = write(s.generator, s.document, s.rubric)
    pair = write(s.teacher, s.document + s.rubric, s.pair)
    step = train(s.target, s.pair, 4)
    made = documents * s.pairs
    return {
        "initial and final rubrics": 2 * made * rubric,
        "initial and final pairs (teacher)": 2 * made * pair,
        "warm-up": s.warmup * made * step,
        "RL: rubrics": s.rollouts * rubric,
        "RL: pairs (teacher)": s.rollouts * pair,
        "RL: influence": s.rollouts * SCORING * step,
        "RL: updates": s.rollouts * train(s.generator, s.document + s.rubric, 6),
        "fine-tuning": made * s.epochs * step,
    }


def price_teacher(setting: Setting, documents: int) -> float:
    """US dollars for the teacher's tokens at a hosted endpoint."""
    s = setting
    asked = 2 * documents * s.pairs + s.rollouts
    return asked * ((s.document + s.rubric) * s.usd_per_million_read + s.pair * s.usd_per_million_written) / 1e6


def tabulate_hours(setting: Setting, documents: Sequence[int], gpus: Sequence[int]) -> dict[str, dict[str, float]]:
    """Corpus and number of GPUs -> hours by stage and in all, assuming that work divides among GPUs."""
    columns = {}
    for count in documents:
        seconds = time_stages(setting, count)
        seconds["all"] = sum(seconds.values())
        for number in gpus:
            columns[f"{count:,} on {number}"] = {stage: taken / 3600 / number for stage, taken in seconds.items()}
    return columns


def print_costs(setting: Setting, documents: Sequence[int], gpus: Sequence[int]) -> str:
    """The table in Markdown, the stage that takes longest for each corpus, and the price of a hosted teacher."""
    hours = tabulate_hours(setting, documents, gpus)
    stages = next(iter(hours.values()))
    rows = [f"| {stage} | {' | '.join(f'{column[stage]:,.1f}' for column in hours.values())} |" for stage in stages]
    lines = [f"| hours | {' | '.join(hours)} |", "| --- |" + " ---: |" * len(hours), *rows, ""]
    for count in documents:
        seconds = time_stages(setting, count)
        teacher = sum(taken for stage, taken in seconds.items() if "teacher" in stage) / sum(seconds.values())
        lines.append(
            f"{count:,} documents: {max(seconds, key=seconds.__getitem__)} take longest, the teacher {teacher:.0%} of "
            f"all; at a hosted endpoint its tokens would cost {price_teacher(setting, count):,.0f} USD."
        )
    return "\n".join(lines)
