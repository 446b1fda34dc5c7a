"""Scoring a corpus: the influence of every sample of a file, over any number of processes, resumable.

    accelerate launch -m rubric_influence.influence.corpus --model MODEL --checkpoints DIR [DIR ...] \\
        --validation validation.jsonl --samples samples.jsonl --out scores.parquet

or `python -m` for one process. Without a GPU, accelerate starts one process only, whatever --num_processes says, unless
it is given --multi_gpu; torchrun starts as many as it is told. Files are JSON Lines with id, question and answer;
validation items may have a topic. Where --samples is a folder of Parquet shards, as rubric_influence.streaming writes
its pairs, OUT is a folder too, with a file for each shard, and memory holds one of them. A checkpoint is a folder with
a LoRA adapter and moments.safetensors or a Trainer's optimizer.pt.

Samples of like length make batches, and some batches a part; processes take parts in turn. A part's scores are on
disk, in OUT.parts, before the next is begun: the same command run again goes on from there. The number of processes
decides neither batches nor scores, which are the same bits where processes have equally many threads. One checkpoint
is in memory at a time, and no gradient is stored.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import PartialState
from peft import PeftModel
from pyarrow import parquet
from tqdm import tqdm

from rubric_influence.config import Influence, ModelSpec
from rubric_influence.distributed import broadcast, open_state
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.examples import Example
from rubric_influence.influence.gradients import plan_batches
from rubric_influence.influence.moments import load_moments
from rubric_influence.influence.samples import Sample, encode_sample, list_shards, read_samples, read_shard
from rubric_influence.influence.scorers import Scorer, combine
from rubric_influence.influence.trainer_checkpoints import find_optimizer, load_trainer_moments
from rubric_influence.layout import fingerprint
from rubric_influence.models import load_model, load_tokenizer
from rubric_influence.records import content_id
from rubric_influence.scoring import group_items, open_configured_scorer

BATCHES_PER_PART = 16
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
GROUPINGS = {None: "mean", "topic": "topics", "cluster": "clusters"}  # --by -> influence.directions
WHOLE = "influence"  # the column along the gradient of all validation items


def score_corpus(
    state: PartialState,
    openers: Sequence[Callable[[], tuple[Scorer, float]]],
    names: list[str],
    samples: Sequence[Sample],
    tokenise: Callable[[Sample], Example],
    out: Path,
    batch_tokens: int,
    provenance: dict,
) -> None:
    """Write `out`, a row a sample in their order: id, the score along every direction of `names`, tokens.

    Each opener makes one checkpoint's scorer along the directions `names`, and its learning rate, by which checkpoints
    are weighed. Scores are those of one call of each scorer, of the same `batch_tokens`, on all samples. `provenance`
    tells all that shapes them but the samples' tokens: where both are as before, finished parts in OUT.parts are used
    again. As JSON, with the learning rates, it is the file's metadata. Processes share the disk of `out`.

    Raises ValueError for a direction called as another column is, and as tokenise and score do, naming the sample.
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


def score_parts(state: PartialState, score: Callable, names: list[str], parts: list[list[int]], folder: Path) -> None:
    """Score this process's share of the parts, `score(rows)` -> [b, k], that `folder` lacks; wait for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    share = range(state.process_index, len(parts), state.num_processes)
    pending = [number for number in share if read_part(folder, number, names, parts) is None]

    def count_done() -> int:
        return sum(len(parts[int(file.stem)]) for file in folder.glob("*.parquet"))

    name = f"{folder.name}, {state.num_processes} process{'es' if state.num_processes > 1 else ''}"
    show = {"desc": name, "unit": "sample", "mininterval": 2, "disable": not state.is_main_process}
    with tqdm(total=sum(map(len, parts)), initial=count_done(), **show) as bar:
        for number in pending:
            columns = score(parts[number]).T.numpy()
            write_table(folder / f"{number}.parquet", pa.table(dict(zip(names, columns, strict=True))))
            bar.update(count_done() - bar.n)
        state.wait_for_everyone()
        bar.update(count_done() - bar.n)


def score_rows(scorer: Scorer, samples: Sequence[Sample], tokenise: Callable, rows: list[int]) -> torch.Tensor:
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
    unfinished = path.with_name(f"{path.name}.partial")
    parquet.write_table(table, unfinished, write_page_checksum=True)
    unfinished.replace(path)


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


def list_files(checkpoint: Path) -> list[Path]:
    """What of a checkpoint shapes scores: its adapter's files and, last, the moments. Raises ValueError without."""
    if missing := [name for name in ADAPTER if not (checkpoint / name).is_file()]:
        raise ValueError(f"no {missing[0]} in {checkpoint}; give a folder with a LoRA adapter as peft saves it")
    own = checkpoint / "moments.safetensors"
    return [*(checkpoint / name for name in ADAPTER), own if own.is_file() else find_optimizer(checkpoint)]


def load_checkpoint(spec: ModelSpec, checkpoint: Path, device: torch.device) -> PeftModel:
    """The model with the checkpoint's adapter, trainable, by which an optimizer's parameters are told."""
    model = load_model(spec, device)
    try:
        return PeftModel.from_pretrained(model, checkpoint, is_trainable=True, torch_device="cpu").eval()
    except Exception as error:  # a damaged or foreign adapter raises almost anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter in {checkpoint} cannot be put on {spec.path}: {reason}") from error


def run(arguments: argparse.Namespace, state: PartialState) -> None:
    if arguments.estimator == "forward" and not arguments.dot:
        raise ValueError("the forward estimator gives dot products, no cosines; add --dot")
    sharded = arguments.samples.is_dir()
    if arguments.out.is_dir() and not sharded:
        raise ValueError(f"{arguments.out} is a folder; give --out the name of a file")
    if arguments.out.is_file() and sharded:
        raise ValueError(f"{arguments.samples} is a folder and {arguments.out} a file; give --out a folder")
    files = [file for folder in arguments.checkpoints for file in list_files(folder)]
    validation = read_samples(arguments.validation)
    # Before any model is loaded: a file that is none is told at once.
    shards = list_shards(arguments.samples) if sharded else []
    samples = [] if sharded else read_samples(arguments.samples)
    if arguments.by == "topic" and not all(item.topic for item in validation):
        raise ValueError(f"{arguments.validation} has items without a topic; give each one, or leave out --by topic")
    spec = ModelSpec(path=arguments.model, dtype=arguments.dtype)
    settings = Influence(
        **{key: getattr(arguments, key) for key in ("estimator", "momentum", "batch_tokens", "clusters")},
        normalise=not arguments.dot,
        directions=GROUPINGS[arguments.by],
    )
    tokenise = partial(encode_sample, load_tokenizer(spec), arguments.template, arguments.max_tokens)
    examples = [tokenise(item) for item in validation]
    # Clusters are the main process's for all, as rounding might make others' differ.
    first = load_checkpoint(spec, arguments.checkpoints[0], state.device) if arguments.by == "cluster" else None
    groups = broadcast(group_items(first, validation, examples, settings, seed=0))
    del first

    def open_checkpoint(folder: Path) -> tuple[Scorer, float]:
        model = load_checkpoint(spec, folder, state.device)
        file = list_files(folder)[-1]
        trainers = file.suffix != ".safetensors"
        moments = load_trainer_moments(folder, model) if trainers else load_moments(file)
        directions = {WHOLE: validation_gradients(model, examples, None, settings.batch_tokens)["all"]}
        if groups:
            directions |= validation_gradients(model, examples, groups, settings.batch_tokens)
        return open_configured_scorer(model, directions, moments, settings), moments.learning_rate

    given = {key: value for key, value in vars(arguments).items() if key != "out"}
    sizes, hashes = Counter(groups or []), hash_files([*files, arguments.validation])
    shaping = json.loads(json.dumps(given, default=str)) | {  # paths as text
        "weights": fingerprint(spec),
        # With how many validation items each is of.
        "directions": {WHOLE: len(examples)} | {name: sizes[name] for name in sorted(sizes)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }

    def describe(source: Path) -> dict:
        return shaping | {"sha256": hashes | hash_files([source])}

    if len(arguments.checkpoints) == 1:
        open_checkpoint = cache(open_checkpoint)  # of several, one at a time is in memory
    openers = [partial(open_checkpoint, folder) for folder in arguments.checkpoints]
    names = [WHOLE, *sorted(sizes)]

    def score(samples: Sequence[Sample], origin: dict, out: Path) -> None:
        score_corpus(state, openers, names, samples, tokenise, out, settings.batch_tokens, origin)

    if not sharded:
        score(samples, describe(arguments.samples), arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        out, origin = arguments.out / shard.name, describe(shard)
        if not is_scored(out, origin) and (samples := read_shard(shard)):
            score(samples, origin, out)


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


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a local folder or a hub name")
    parser.add_argument("--checkpoints", required=True, nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--validation", required=True, type=Path, metavar="JSONL")
    parser.add_argument("--samples", required=True, type=Path, metavar="JSONL", help="or a folder of shards")
    parser.add_argument("--out", required=True, type=Path, metavar="PARQUET")
    parser.add_argument("--estimator", choices=["adam", "linear", "gradient", "forward"], default="adam")
    parser.add_argument("--momentum", action="store_true", help="keep the first moment in Gamma")
    parser.add_argument("--dot", action="store_true", help="dot products in place of cosines")
    parser.add_argument("--by", choices=["topic", "cluster"], help="a column for each as well")
    parser.add_argument("--clusters", type=count, default=6, metavar="N")
    parser.add_argument("--batch-tokens", type=count, default=8192, metavar="N", help="of a batch, with padding")
    parser.add_argument("--template", default="{question}", help="what the model is asked")
    parser.add_argument("--max-tokens", type=count, metavar="N", help="samples are cut there; default: nowhere")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args(argv)
    state = open_state()
    try:
        run(arguments, state)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)  # of every process: the first to end ends the others
        return 1
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
