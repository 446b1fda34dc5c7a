"""How fast, and at what memory, influence is scored: side by side with what it replaces, on one model and data."""

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.influence.cases import save_case
from benchmarks.influence.costs import describe_measure, exact_pages, peak_while, time_alternately
from benchmarks.influence.lab import Case
from benchmarks.influence.peers import PEERS, PYTHON, measure_peer
from benchmarks.influence.published import FLUSH, PROJECTED, PublishedScorer, make_projector
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.layers import count_parameters, scored_parameters
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.influence.scorers import ForwardScorer, GradientScorer
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import plan_batches, sample_losses

DIRECTIONS = (1, 9, 64)  # scored at once, by the peers and by ours beside them
LAB_BATCH_TOKENS = 2048  # of 768 to 6144 the fastest on a CPU; larger ones pad more and take twice as long


@dataclass(frozen=True)
class Workload:
    """What is scored. directions [1, d]; suffix: what its figures' names end in."""

    model: PeftModel
    directions: torch.Tensor
    moments: AdamMoments
    examples: list[Example]
    batch_tokens: int
    suffix: str = ""


@dataclass(frozen=True)
class Size:
    """A Qwen3 of these sizes, and samples of so many tokens in batches of so many."""

    hidden_size: int = 512
    layers: int = 5
    vocabulary: int = 8192
    tokens: int = 256
    batch: int = 8
    samples: int = FLUSH


def build_workload(size: Size, seed: int) -> Workload:
    """A Qwen3 of random weights, as no figure depends on values."""
    torch.manual_seed(seed)
    heads = size.hidden_size // 64
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=size.vocabulary,
        hidden_size=size.hidden_size,
        intermediate_size=3 * size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=size.tokens,
        tie_word_embeddings=True,
    )
    return adapt(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), size)


def use_model(folder: Path, seed: int) -> Workload:
    """A pretrained model in float32, on samples of 128 tokens in batches of four."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return adapt(base, Size(vocabulary=base.config.vocab_size, tokens=128, batch=4, samples=8))


def adapt(base: PreTrainedModel, size: Size) -> Workload:
    """LoRA of rank 16 on every linear layer; random adapter, moments and tokens.

    Every token but a sample's first is labelled, so that none of the passes can save logits.
    """
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    shapes = {name: parameter.shape for name, parameter in scored_parameters(model).items()}
    moments = AdamMoments(
        {name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()},
        {name: 1e-6 * (0.5 + torch.rand(shape)) for name, shape in shapes.items()},
        step=10,
        betas=(0.9, 0.999),
        eps=1e-8,
        learning_rate=1e-4,
    )
    rows = torch.randint(size.vocabulary, (size.samples, size.tokens)).tolist()
    examples = [Example(ids, [-100, *ids[1:]]) for ids in rows]
    return Workload(model, torch.randn(1, count_parameters(model)), moments, examples, size.batch * size.tokens)


def use_case(case: Case) -> Workload:
    """Candidates of the lab's, scored along the gradient of its whole validation loss."""
    direction = validation_gradients(case.model, case.validation, None, LAB_BATCH_TOKENS)["all"][None]
    return Workload(case.model, direction, case.moments, case.candidates[:192], LAB_BATCH_TOKENS, suffix="_lab")


def make_batches(work: Workload) -> list[dict[str, torch.Tensor]]:
    """The very batches that the scorers make."""
    batches = plan_batches([len(example.input_ids) for example in work.examples], work.batch_tokens)
    return [collate([work.examples[row] for row in rows], pad_token_id=0) for rows in batches]


def open_exact(work: Workload) -> GradientScorer:
    return GradientScorer(work.model, work.directions, work.moments, momentum=False, batch_tokens=work.batch_tokens)


def train_without_step(work: Workload) -> None:
    """Forward and backward of LoRA training: the mean loss of every batch, gradients of the LoRA weights."""
    parameters = scored_parameters(work.model).values()
    work.model.train()
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in make_batches(work):
        sample_losses(work.model, batch).mean().backward()
        for parameter in parameters:
            parameter.grad = None


@torch.no_grad()
def run_forward(work: Workload) -> None:
    work.model.eval()
    for batch in make_batches(work):
        sample_losses(work.model, batch)


def measure_exact(work: Workload, repeats: int) -> dict:
    """Exact scores against a plain LoRA forward and backward (seconds), and against batch 1 (samples a second)."""
    exact = open_exact(work)
    single = PublishedScorer(work.model, work.directions, work.moments, momentum=False, projection=None)
    seconds = time_alternately(
        {
            "exact": lambda: exact.score(work.examples),
            "plain_step": lambda: train_without_step(work),
            "batch1": lambda: single.score(work.examples),
        },
        repeats,
    )
    found = {
        "exact_over_plain_step": seconds["exact"] / seconds["plain_step"],
        "exact_over_batch1": seconds["batch1"] / seconds["exact"],
    }
    found |= {f"{name}_samples_per_second": len(work.examples) / spent for name, spent in seconds.items()}
    return {f"{name}{work.suffix}": value for name, value in found.items()}


def find_traker() -> bool:
    """Whether the random projection's package can be imported, here or, failing that, from the peers' environment."""
    if find_spec("trak") is None:
        # Last on the path, so that it adds packages and replaces none.
        sys.path += [str(folder) for folder in PYTHON.parents[1].glob("lib/python*/site-packages")]
    return find_spec("trak") is not None


def measure_published(work: Workload, columns: int) -> dict:
    """Exact scores against the published path, batch 1 and a projection to 8192, in samples a second, over one flush.

    The projection is made in equal blocks of columns, which takes minutes on a CPU: `columns` of them are timed and
    their seconds scaled up. The figures are None where traker is not installed.
    """
    names = [f"{name}{work.suffix}" for name in ("exact_over_published_path", "published_path_samples_per_second")]
    if not find_traker():
        return dict.fromkeys(names)
    examples = work.examples[:FLUSH]
    exact = open_exact(work)
    single = PublishedScorer(work.model, work.directions, work.moments, momentum=False, projection=None)
    projector = make_projector(count_parameters(work.model), columns, single.second.device)
    gammas = torch.randn(len(examples), count_parameters(work.model), device=single.second.device)
    seconds = time_alternately(
        {"exact": lambda: exact.score(work.examples), "batch1": lambda: single.score(examples)}, repeats=2
    )
    seconds |= time_alternately({"project": lambda: projector.project(gammas, model_id=0)}, repeats=1)
    rate = len(examples) / (seconds["batch1"] + seconds["project"] * PROJECTED / columns)
    return {
        names[0]: len(work.examples) / seconds["exact"] / rate,
        names[1]: rate,
        f"published_path_samples{work.suffix}": len(examples),
        f"published_path_columns_timed{work.suffix}": columns,
    }


def measure_forward_only(work: Workload, repeats: int) -> dict:
    """Seconds of the forward estimator with one direction over those of one plain forward without gradients."""
    scorer = ForwardScorer(work.model, work.directions, work.moments, momentum=False, batch_tokens=work.batch_tokens)
    seconds = time_alternately(
        {"forward_only": lambda: scorer.score(work.examples), "forward": lambda: run_forward(work)}, repeats
    )
    rates = {f"{name}_samples_per_second": len(work.examples) / spent for name, spent in seconds.items()}
    return {"forward_only_over_forward": seconds["forward_only"] / seconds["forward"], **rates}


def peak_memory(name: Literal["exact", "plain_step"], size: Size, seed: int, threads: int) -> int:
    """Bytes that one pass takes at its peak beyond what was held before it; on a CPU run it in a process of its own."""
    torch.set_num_threads(threads)
    work = build_workload(size, seed)
    exact = open_exact(work)
    return peak_while(lambda: exact.score(work.examples) if name == "exact" else train_without_step(work))


def measure_memory(size: Size, seed: int) -> dict:
    """Peak memory of exact scoring over the plain step's, each in a fresh process; None where it cannot be told."""
    if not (measure := describe_measure()):
        return {"memory_over_plain_step": None}
    size = replace(size, samples=size.batch)  # the peak is a batch's
    peaks = {}
    for name in ("exact", "plain_step"):
        with exact_pages(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_memory, name, size, seed, torch.get_num_threads()).result()
    return {
        "memory_over_plain_step": peaks["exact"] / peaks["plain_step"],
        "memory_measured_as": measure,
        **{f"{name}_peak_mib": peak / 2**20 for name, peak in peaks.items()},
    }


def draw_directions(work: Workload, count: int, seed: int) -> torch.Tensor:
    """The first sample's gradient with as much noise again, [count, d]: no score is near 0 for all samples."""
    gradient = example_gradients(work.model, work.examples[:1], work.batch_tokens)
    noise = torch.randn(count, gradient.shape[1], generator=torch.Generator().manual_seed(seed))
    return gradient + noise * gradient.norm() / gradient.shape[1] ** 0.5


def measure_against_peers(work: Workload, name: str, seed: int, limit: float) -> dict:
    """'PEER NAME K' -> the peer's entry, against K directions; ours among them, for its memory."""
    directions = draw_directions(work, max(DIRECTIONS), seed)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_case(Path(folder), work.model, directions, work.moments, work.examples, work.batch_tokens)
        for peer, count in product(PEERS, DIRECTIONS):
            found[f"{peer} {name} {count}"] = measure_peer(peer, Path(folder), count, limit)
    return found
