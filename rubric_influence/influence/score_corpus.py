"""Scoring a corpus: the influence of every sample of a file, over any number of processes, resumable.

`score_files` is what `rubric-influence score` runs. Files are JSON Lines with id, question and answer; validation items
may have a topic. Of a folder of Parquet shards, as `rubric-influence synthesise` writes it, memory holds one at a time,
and the scores are a folder with a file for each.

Samples of like length make batches, and some batches a part; processes take parts in turn. A part's scores are on
disk, in OUT.parts, before the next is begun: the same request made again goes on from there. The number of processes
decides neither batches nor scores, which are the same bits where processes have equally many threads. One checkpoint
is in memory at a time, and no gradient is stored.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch
from accelerate import PartialState
from pyarrow import parquet
from tqdm import tqdm

from rubric_influence.core.files import replace_file
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import content_id
from rubric_influence.influence.api import WHOLE, PairScorer, Target, load_target
from rubric_influence.influence.checkpoints import list_checkpoint_files
from rubric_influence.influence.grouping import group_by_embedding
from rubric_influence.influence.samples import Sample, encode_sample, list_shards, read_samples, read_shard
from rubric_influence.influence.scorers import Estimator, ForwardScorer, Scorer, combine
from rubric_influence.influence.served import AdapterLosses, ServedScorer, export_scorer, free_memory
from rubric_influence.models.examples import Example
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.models.losses import plan_batches
from rubric_influence.models.processes import broadcast

BATCHES_PER_PART = 16
PROBE = 16  # validation items on which an engine has to agree with torch
Tokenise = Callable[[Sample], Example]
Score = Callable[[list[int]], torch.Tensor]  # of some samples, by their places: [b, k]


def score_corpus(
    state: PartialState,
    openers: Sequence[Callable[[], tuple[Scorer, float]]],
    names: list[str],
    samples: Sequence[Sample],
    tokenise: Tokenise,
    out: Path,
    batch_tokens: int,
    provenance: dict,
) -> None:
    """Write `out`, a row a sample in their order: id, the score along every direction of `names`, tokens.

    Each opener makes one checkpoint's scorer along the directions `names`, and its learning rate, by which checkpoints
    are weighed. Scores are those of one call of each scorer, of the same `batch_tokens`, on all samples. `provenance`
    tells all that shapes them but the samples' tokens: where both are as before, finished parts in OUT.parts are used
    again. As JSON, with the learning rates, it is the file's metadata. Processes share the disk of `out`.

    Raises ValueError if a direction has another column's name, and as tokenise and score do, naming the sample.
    """
    if taken := [name for name, times in Counter(["id", *names, "tokens"]).items() if times > 1]:
        raise ValueError(f"the scores have a column {min(taken)!r} already; rename that topic")
    lengths, tokens = [], hashlib.sha256()
    for sample in tqdm(samples, "tokens", unit="sample", mininterval=2, disable=not state.is_main_process):
        example = tokenise(sample)  # and again when it is scored: the ids of a whole corpus fill the memory
        lengths.append(len(example.input_ids))
        tokens.update(json.dumps([example.input_ids, example.labels]).encode())
    batches = plan_batches(lengths, batch_tokens)
    parts = [sum(batches[i : i + BATCHES_PER_PART], []) for i in range(0, len(batches), BATCHES_PER_PART)]
    shaping = json.dumps(provenance, sort_keys=True), names, batch_tokens, BATCHES_PER_PART, tokens.hexdigest()
    folder = out.with_name(f"{out.name}.parts") / content_id(*shaping)
    rates = []
    for place, opener in enumerate(openers):
        scorer, rate = opener()
        score_parts(state, partial(score_rows, scorer, samples, tokenise), names, parts, folder / f"checkpoint-{place}")
        rates.append(rate)
        del scorer  # before the next checkpoint is loaded
    if state.is_main_process:
        scores = combine([read_parts(folder / f"checkpoint-{i}", names, parts) for i in range(len(rates))], rates)
        columns = {"id": [sample.id for sample in samples]} | dict(zip(names, scores.T.numpy(), strict=True))
        columns["tokens"] = pa.array(lengths, pa.int32())
        origin = json.dumps(provenance | {"learning_rates": rates}, ensure_ascii=False)
        write_table(out, pa.table(columns).replace_schema_metadata({"provenance": origin}))
        shutil.rmtree(folder)
        with suppress(OSError):  # it holds parts of other settings
            folder.parent.rmdir()


def score_parts(state: PartialState, score: Score, names: list[str], parts: list[list[int]], folder: Path) -> None:
    """Write the parts of this process's share that `folder` lacks; wait for the other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    share = range(state.process_index, len(parts), state.num_processes)
    pending = [number for number in share if read_part(folder, number, names, parts) is None]

    def count_done() -> int:
        return sum(len(parts[int(file.stem)]) for file in folder.glob("*.parquet"))

    name = f"{folder.name}, {state.num_processes} process{'es' if state.num_processes > 1 else ''}"
    total, quiet = sum(map(len, parts)), not state.is_main_process
    with tqdm(desc=name, total=total, initial=count_done(), unit="sample", mininterval=2, disable=quiet) as bar:
        for number in pending:
            columns = score(parts[number]).T.numpy()
            write_table(folder / f"{number}.parquet", pa.table(dict(zip(names, columns, strict=True))))
            bar.update(count_done() - bar.n)
        state.wait_for_everyone()
        bar.update(count_done() - bar.n)


def score_rows(scorer: Scorer, samples: Sequence[Sample], tokenise: Tokenise, rows: list[int]) -> torch.Tensor:
    """The scores [b, k] of some samples. Where a score is not finite, the error names the sample."""
    examples = [tokenise(samples[row]) for row in rows]
    try:
        return scorer.score(examples)
    except ValueError:
        for row, example in zip(rows, examples, strict=True):
            try:
                scorer.score([example])
            except ValueError as error:
                raise ValueError(f"sample {samples[row].id!r}: {error}") from None
        raise


def write_table(path: Path, table: pa.Table) -> None:
    """In one step and with checksums, so that a file of this name is whole, or tells that it was damaged later."""
    with replace_file(path) as partial:
        parquet.write_table(table, partial, write_page_checksum=True)


def read_part(folder: Path, number: int, names: list[str], parts: list[list[int]]) -> torch.Tensor | None:
    """The scores [b, k] of a finished part; None where there is none, or a damaged one."""
    try:
        table = parquet.ParquetFile(folder / f"{number}.parquet", page_checksum_verification=True).read()
    except (OSError, ValueError, pa.ArrowException):
        return None
    if table.column_names != names or table.num_rows != len(parts[number]):
        return None
    return torch.tensor([column.to_pylist() for column in table.columns]).T


def read_parts(folder: Path, names: list[str], parts: list[list[int]]) -> torch.Tensor:
    """The scores [n, k] at one checkpoint. Raises ValueError if a part is missing or damaged."""
    scores = torch.empty(sum(map(len, parts)), len(names))
    for number, rows in enumerate(parts):
        part = read_part(folder, number, names, parts)
        if part is None:
            raise ValueError(f"part {number} in {folder} is lost; run this again, with OUT on a disk that hosts share")
        scores[rows] = part
    return scores


@dataclass(frozen=True)
class ScoringRequest:
    """What is scored, on which model, and how: what shapes the scores, and their provenance.

    by: None, "topic" or "cluster": whether each topic or cluster of the validation items has a column as well.
    template: what the model is asked. max_tokens: where samples are cut, None for nowhere.
    engine: what takes the samples' losses, for the estimator forward; torch makes the directions all the same.
    """

    model: str
    checkpoints: Sequence[Path]
    validation: Path
    samples: Path
    estimator: Estimator = "adam"
    momentum: bool = False
    dot: bool = False
    by: Literal["topic", "cluster"] | None = None
    clusters: int = 6
    batch_tokens: int = 8192
    template: str = "{question}"
    max_tokens: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["transformers", "vllm"] = "transformers"

    def load_target(self, checkpoint: Path, device: torch.device) -> Target:
        return load_target(
            self.model, checkpoint, dtype=self.dtype, device=device, template=self.template, max_tokens=self.max_tokens
        )


def score_files(
    request: ScoringRequest, out: Path, state: PartialState, open_losses: Callable[[], AdapterLosses] | None = None
) -> None:
    """Write the scores of request.samples to `out`, a file, or of shards a folder.

    `open_losses` starts request.engine, once and after torch's models have left memory; None: torch does all.
    Raises ValueError for what cannot be scored, before any model is loaded where it can be told by then.
    """
    assert (open_losses is None) == (request.engine == "transformers")
    if open_losses:
        if request.estimator != "forward" or request.dtype != "float32":
            raise ValueError(
                f"{request.engine} gives losses alone, of which forward makes dot products in float32, and the request "
                f"is for {request.estimator} in {request.dtype}; add --estimator forward --dot --dtype float32"
            )
        if state.num_processes > 1:
            raise ValueError(f"{state.num_processes} processes would start {request.engine} each; start one process")
    if request.estimator == "forward" and not request.dot:
        raise ValueError("the forward estimator gives dot products, no cosines; add --dot")
    sharded = request.samples.is_dir()
    if out.is_dir() and not sharded:
        raise ValueError(f"{out} is a folder; give --out the name of a file")
    if out.is_file() and sharded:
        raise ValueError(f"{request.samples} is a folder and {out} a file; give --out a folder")
    files = [file for folder in request.checkpoints for file in list_checkpoint_files(folder)]
    validation = read_samples(request.validation)
    shards = list_shards(request.samples) if sharded else []
    samples = [] if sharded else read_samples(request.samples)
    if request.by == "topic" and not all(item.topic for item in validation):
        raise ValueError(f"{request.validation} has items without a topic; give each one, or leave out --by topic")
    spec = ModelSpec(path=request.model, dtype=request.dtype)
    tokenise = partial(encode_sample, load_tokenizer(spec), request.template, request.max_tokens)
    examples = [tokenise(item) for item in validation]
    groups = [item.topic for item in validation] if request.by == "topic" else None
    if request.by == "cluster":  # the main process's for all, as rounding might make others' differ
        first = request.load_target(request.checkpoints[0], state.device).model
        groups = broadcast(group_by_embedding(first, examples, request.clusters, request.batch_tokens, seed=0))
        del first

    def load(checkpoint: Path) -> tuple[Scorer, float]:
        target = request.load_target(checkpoint, state.device)
        chosen = {key: getattr(request, key) for key in ("estimator", "momentum", "batch_tokens")}
        scorer = PairScorer(target, validation, groups, normalise=not request.dot, **chosen)
        return scorer.scorer, scorer.target.moments.learning_rate

    opener = cache(load) if len(request.checkpoints) == 1 else load  # of several, one at a time is in memory
    openers = [partial(opener, folder) for folder in request.checkpoints]
    sizes, hashes = Counter(groups or []), hash_files([*files, request.validation])
    directions = {WHOLE: len(examples)} | {name: sizes[name] for name in sorted(sizes)}  # of how many items each is
    given = json.dumps(dict(vars(request), checkpoints=list(request.checkpoints)), default=str)  # paths as text
    shaping = json.loads(given) | {"weights": fingerprint(spec), "directions": directions}
    shaping["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
    if open_losses:  # whose build for CPUs is a package of another name
        shaping["versions"][request.engine] = version(packages_distributions()[request.engine][0])
    if sharded:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as adapters:
        if open_losses:
            served = cache(partial(serve, load, request.checkpoints, examples[:PROBE], Path(adapters), open_losses))
            openers = [partial(lambda place: served()[place], place) for place in range(len(request.checkpoints))]
        for source, scored in [(shard, out / shard.name) for shard in shards] or [(request.samples, out)]:
            provenance = shaping | {"sha256": hashes | hash_files([source])}
            if sharded:
                samples = [] if is_scored(scored, provenance) else read_shard(source)
            if samples:
                names = [WHOLE, *sorted(sizes)]
                score_corpus(state, openers, names, samples, tokenise, scored, request.batch_tokens, provenance)


def serve(
    load: Callable[[Path], tuple[Scorer, float]],
    checkpoints: Sequence[Path],
    probe: Sequence[Example],
    folder: Path,
    open_losses: Callable[[], AdapterLosses],
) -> list[tuple[Scorer, float]]:
    """Each checkpoint's scorer by an engine, and its learning rate. The moved adapters are in `folder` from then on.

    torch's models go one after the other before the engine starts, which may take all the memory that is free.
    """
    exported, rates = [], []
    for place, checkpoint in enumerate(checkpoints):
        scorer, rate = load(checkpoint)
        assert isinstance(scorer, ForwardScorer)  # what score_files lets pass
        exported.append(export_scorer(scorer, folder / str(place), probe))
        rates.append(rate)
        del scorer
    free_memory()
    losses = open_losses()
    return [(ServedScorer(each, losses), rate) for each, rate in zip(exported, rates, strict=True)]


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def is_scored(path: Path, provenance: dict) -> bool:
    """Whether a file of scores is there, whole, and of the same provenance."""
    try:
        found = json.loads(parquet.read_schema(path).metadata[b"provenance"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False
    found.pop("learning_rates", None)
    return found == provenance
