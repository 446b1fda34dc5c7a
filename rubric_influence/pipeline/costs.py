"""What a corpus of any size costs on any number of GPUs, and where the time goes.

A model of the pipeline's one necessary pass (initial set, warm-up, RL, final set, fine-tuning of one arm), without the
baselines. Floating-point operations, for a model of P active parameters (Kaplan et al. 2020, arXiv 2001.08361, 2.1):

    a token read or written  2 P       a token trained on, all weights  6 P
    a token trained on by LoRA  4 P    (the base's own gradients are not made: forward 2 P, back to the inputs 2 P)
    a token scored  4 P * SCORING      (a LoRA step, times what benchmarks/results/influence.json measures over one)

Attention's own operations are left out: under a tenth at these lengths. hours = operations / (GPUs * peak * share of
the peak that such work reaches). Every assumption is a constant or a field below.
"""

from dataclasses import dataclass

# benchmarks/results/influence.json, speed/exact_over_plain_step: 1.08 at 22 million parameters.
SCORING = 1.08
PEAK = 989e12  # bf16, dense, a second: NVIDIA H100 SXM data sheet; an H200 has as much
# Shares of the peak. Reading a prompt is bound by arithmetic and training more so: 0.4 is what is commonly reached
# (Chowdhery et al. 2022, arXiv 2204.02311, table 3: 0.21 to 0.46 for dense training). Writing is bound by memory:
# 0.1 takes batches of some hundreds of sequences. These three are assumptions, not measured by us.
READING, TRAINING, WRITING = 0.4, 0.35, 0.1


@dataclass(frozen=True)
class Setting:
    """The paper's models and schedule (arXiv 2604.00536, section 4 and appendix D), and lengths in tokens.

    `teacher` is the active part of Qwen3-235B-A22B. Lengths are assumptions for medical abstracts; `rollouts` are the
    rubrics that RL samples, group size 5 over one epoch of 20,000 documents: RL need not grow with the corpus.
    """

    generator: float = 8e9
    teacher: float = 22e9
    target: float = 8e9
    document: int = 1000  # with the instructions around it
    rubric: int = 200
    pair: int = 500
    pairs: int = 1  # a document, in the initial and in the final set
    rollouts: int = 100_000
    warmup: float = 0.1  # of the initial pairs, one epoch
    epochs: int = 3  # of the final fine-tuning
    usd_per_million_read: float = 0.2  # of a hosted teacher, for the last column
    usd_per_million_written: float = 0.6


def time_stages(setting: Setting, documents: int) -> dict[str, float]:
    """Stage -> seconds on one GPU."""
    s = setting

    def write(parameters: float, read: int, written: int) -> float:
        return 2 * parameters * (read / READING + written / WRITING) / PEAK

    def train(parameters: float, tokens: int, each: int) -> float:
        return each * parameters * tokens / TRAINING / PEAK

    rubric = write(s.generator, s.document, s.rubric)
    pair = write(s.teacher, s.document + s.rubric, s.pair)
    score = SCORING * train(s.target, s.pair, 4)
    made = documents * s.pairs
    return {
        "initial and final rubrics": 2 * made * rubric,
        "initial and final pairs (teacher)": 2 * made * pair,
        "warm-up": s.warmup * made * train(s.target, s.pair, 4),
        "RL: rubrics": s.rollouts * rubric,
        "RL: pairs (teacher)": s.rollouts * pair,
        "RL: influence": s.rollouts * score,
        "RL: updates": s.rollouts * train(s.generator, s.document + s.rubric, 6),
        "fine-tuning": made * s.epochs * train(s.target, s.pair, 4),
    }


def price_teacher(setting: Setting, documents: int) -> float:
    """US dollars for the teacher's tokens at a hosted endpoint."""
    s = setting
    asked = 2 * documents * s.pairs + s.rollouts
    return asked * ((s.document + s.rubric) * s.usd_per_million_read + s.pair * s.usd_per_million_written) / 1e6


def tabulate_hours(setting: Setting, documents: list[int], gpus: list[int]) -> dict[str, dict[str, float]]:
    """Corpus and number of GPUs -> hours by stage and in all, assuming that work divides among GPUs."""
    columns = {}
    for count in documents:
        seconds = time_stages(setting, count)
        seconds["all"] = sum(seconds.values())
        for number in gpus:
            columns[f"{count:,} on {number}"] = {stage: taken / 3600 / number for stage, taken in seconds.items()}
    return columns


def print_costs(setting: Setting, documents: list[int], gpus: list[int]) -> str:
    """The table in Markdown, the stage that takes longest for each corpus, and the price of a hosted teacher."""
    hours = tabulate_hours(setting, documents, gpus)
    lines = [f"| hours | {' | '.join(hours)} |", "| --- |" + " ---: |" * len(hours)]
    for stage in next(iter(hours.values())):
        lines.append(f"| {stage} | {' | '.join(f'{column[stage]:,.1f}' for column in hours.values())} |")
    lines.append("")
    for count in documents:
        seconds = time_stages(setting, count)
        teacher = sum(taken for stage, taken in seconds.items() if "teacher" in stage) / sum(seconds.values())
        lines.append(
            f"{count:,} documents: {max(seconds, key=seconds.__getitem__)} take longest, the teacher {teacher:.0%} of "
            f"all; at a hosted endpoint its tokens would cost {price_teacher(setting, count):,.0f} USD."
        )
    return "\n".join(lines)
