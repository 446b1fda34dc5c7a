"""How fast, and at what memory, influence is scored: side by side with what it replaces, on one model and data."""

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.influence.lab import Case
from benchmarks.influence.peers import PYTHON, measure_peers
from benchmarks.influence.published import FLUSH, PROJECTED, PublishedScorer, make_projector
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.layers import count_parameters, scored_parameters
from rubric_influence.influence.moments import AdamMoments
from rubric_influence.influence.scorers import ForwardScorer, GradientScorer
from rubric_influence.models.examples import Example, collate
from rubric_influence.models.losses import plan_batches, sample_losses

STATUS = Path("/proc/self/status")  # Linux's own account of a process
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
    """Random weights, moments and tokens, as no figure depends on values: LoRA of rank 16 on every linear layer.

    Every token but a sample's first is labelled, so that none of the passes can save logits.
    """
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
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    shapes = {name: parameter.shape for name, parameter in scored_parameters(model).items()}
    moments = AdamMoments(
        {name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()},
        {name: 1e-6 * torch.rand(shape) for name, shape in shapes.items()},
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


def time_alternately(passes: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least seconds of each pass over `repeats` rounds, in each of which every pass runs once."""
    best = dict.fromkeys(passes, float("inf"))
    for _ in range(repeats):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


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


def held_memory() -> int:
    """Bytes of this process's own: anonymous pages, in memory or swapped out. Files' pages come and go."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return sum(1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmSwap:"))


def peak_while(run: Callable[[], None]) -> int:
    """The most memory held while `run` runs beyond what was held before it, looked at every two milliseconds."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc's; what it keeps of what was freed would be taken for held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, most, over = held_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, held_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return most - before


def peak_memory(name: Literal["exact", "plain_step"], size: Size, seed: int, threads: int) -> int:
    """Bytes that one pass takes at its peak beyond what was held before it; on a CPU run it in a process of its own."""
    torch.set_num_threads(threads)
    work = build_workload(size, seed)
    exact = open_exact(work)

    def run() -> None:
        exact.score(work.examples) if name == "exact" else train_without_step(work)

    if not torch.cuda.is_available():
        return peak_while(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def measure_memory(size: Size, seed: int) -> dict:
    """Peak memory of exact scoring over the plain step's, each in a fresh process.

    On a GPU it is what torch allocated, on Linux without one the process's own memory; elsewhere it is None.
    """
    if not (torch.cuda.is_available() or STATUS.exists()):
        return {"memory_over_plain_step": None}
    size = replace(size, samples=size.batch)  # the peak is a batch's
    # Read by glibc as a process starts: tensors get pages of their own, and what is freed is not taken for held.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    peaks = {}
    for name in ("exact", "plain_step"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_memory, name, size, seed, torch.get_num_threads()).result()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return {
        "memory_over_plain_step": peaks["exact"] / peaks["plain_step"],
        "memory_measured_as": "cuda allocated" if torch.cuda.is_available() else "anonymous pages",
        **{f"{name}_peak_mib": peak / 2**20 for name, peak in peaks.items()},
    }


def measure_against_peers(work: Workload, limit: float) -> dict:
    """Exact scores against every installable peer, in samples a second: their entries, None where one has an error."""
    exact = open_exact(work)
    seconds = time_alternately({"exact": lambda: exact.score(work.examples)}, repeats=3)["exact"]
    found = measure_peers(work.model, work.directions, work.moments, work.examples, work.batch_tokens, limit)
    entries = {}
    for name, entry in found.items():
        rate = entry.get("samples_per_second")
        ratio = len(work.examples) / seconds / rate if rate else None
        kept = {key: value for key, value in entry.items() if key not in ("scores", "seconds")}
        entries[f"{name}{work.suffix}"] = {"exact_over_peer": ratio, "samples": len(work.examples), **kept}
    return entries
