"""A set of pairs as a dataset that others can load: Parquet files, and a card that says what is in them.

`list_arm` reads an arm of data/final; `list_shards` reads a streamed corpus shard by shard and checks it on the way,
as the profile's section quality says. `datasets.load_dataset` loads the folder that `write_release` writes.
`push_release` uploads it to the Hugging Face hub; the token is taken from HF_TOKEN alone.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from pyarrow import parquet

from rubric_influence.core.config import Config
from rubric_influence.core.paths import METRICS
from rubric_influence.core.records import ExamItem, QAPair
from rubric_influence.synthesis.screening import REMOVED, Screen, remove_flagged
from rubric_influence.synthesis.trace import trace_set
from rubric_influence.synthesis.writing import FAILED

TEXTS = ("id", "question", "answer", "document_id", "document_source", "rubric_id", "rubric", "rubric_author")
TEXTS += ("generator", "teacher", "teacher_model", "flags")
COLUMNS = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [("seed", pa.int64()), ("slot", pa.int64()), ("influence", pa.float64()), ("guard_influence", pa.float64())]
)


def list_arm(arm: str, seed: int, counts: Counter) -> Iterator[list[dict]]:
    """The kept pairs of an arm as one batch of rows; `counts` gets those and what was left out, by reason."""
    rows = []
    for trace in trace_set(arm, seed):
        problem, rubric, document = trace["problem"], trace["rubric"] or {}, trace["document"]
        counts["requested"] += 1
        counts["kept" if not problem else name_problem(problem)] += 1
        if problem:
            continue
        counts.update(f"flagged: {check}" for check in trace["flags"])
        own = {name: trace[name] for name in ("id", "question", "answer", "generator", "teacher", "teacher_model")}
        scores = {"influence": trace["influence"]["validation"], "guard_influence": trace["influence"]["guard"]}
        own |= {"document_id": document["id"], "document_source": document["source"], "rubric_id": rubric.get("id", "")}
        own |= {"rubric": rubric.get("text", ""), "rubric_author": rubric.get("author", "")}
        rows.append(own | scores | {"seed": trace["seed"], "slot": trace["slot"], "flags": json.dumps(trace["flags"])})
    yield rows


def list_shards(folder: Path, config: Config, exam: list[ExamItem], counts: Counter) -> Iterator[list[dict]]:
    """Like `list_arm`, one batch for every shard of a streamed corpus, checked on the way."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        generator, teacher = run["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no streamed corpus ({error!r}); give streaming's --out") from None
    screen, names = Screen(config.quality, exam), [field.name for field in fields(QAPair)]
    for path in sorted((folder / "pairs").glob("*.parquet")):
        try:
            rubrics = {row["id"]: row for row in parquet.read_table(folder / "rubrics" / path.name).to_pylist()}
            pairs = [
                QAPair(**{name: row[name] for name in names})
                for row in parquet.read_table(path, memory_map=False).to_pylist()
            ]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ValueError(f"{path} or its rubrics cannot be read ({error}); run streaming again") from None
        flags = screen.check(pairs)
        pairs = remove_flagged(pairs, flags, config.quality.remove)
        rows = []
        for pair, found in zip(pairs, flags, strict=True):
            counts["requested"] += 1
            counts[name_problem(pair.problem) if pair.problem else "kept"] += 1
            if pair.problem:
                continue
            counts.update(f"flagged: {check}" for check in found)
            rubric = rubrics.get(pair.rubric_id, {})
            own = {name: getattr(pair, name) for name in ("id", "question", "answer", "document_id", "rubric_id")}
            own |= {"teacher": pair.teacher, "seed": pair.seed, "slot": pair.slot, "flags": json.dumps(found)}
            own |= {"rubric": rubric.get("text", ""), "rubric_author": rubric.get("author", "")}
            rows.append(own | {"generator": generator, "teacher_model": teacher})
        yield rows


def name_problem(problem: str) -> str:
    """What a pair that is left out counts as."""
    if problem.startswith(REMOVED):
        return REMOVED + problem.removeprefix(REMOVED).split(":")[0]
    return "failed" if problem.startswith(FAILED) else "invalid"


def write_release(out: Path, batches: Iterable[list[dict]], counts: Counter, licence: str, config: Config) -> Path:
    """Write data/*.parquet and the card. Raises ValueError where `out` has files, or no pair is kept."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; remove it or give another folder")
    if not licence.strip():
        raise ValueError("the licence is empty; name that of the documents' publisher, such as cc-by-4.0")
    (out / "data").mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(batches):
        if rows:
            table = pa.Table.from_pylist(rows, schema=COLUMNS)
            parquet.write_table(table, out / "data" / f"train-{number:05d}.parquet")
    if not counts["kept"]:
        raise ValueError(f"no pair is kept of {counts['requested']}: {dict(counts)}; nothing to release")
    (out / "README.md").write_text(str(write_card(counts, licence, config)), encoding="utf-8")
    return out


def write_card(counts: Counter, licence: str, config: Config) -> DatasetCard:
    """The dataset card. It holds no text of a document or a model, so that none can change what it says."""
    language = config.quality.language
    data = DatasetCardData(
        license=licence,
        language=[language] if language else None,
        task_categories=["question-answering"],
        tags=["synthetic", "rubric-influence"],
        configs=[{"config_name": "default", "data_files": "data/*.parquet"}],
    )
    corpus, models = config.corpus, config.models
    source = corpus.documents if corpus.kind == "text" else f"the lab's world of {corpus.field}"
    results = METRICS / "evaluation.json"
    lines = [
        *("---", data.to_yaml(), "---", "# Synthetic question-answer pairs", ""),
        "Pairs that a teacher model wrote from documents and rubrics; the rubrics are a generator's, trained on the",
        "influence of its pairs on a target model where the set is of that arm. Written by models: check before use.",
        *("", "| | |", "|---|---|", f"| documents | {Path(source).name if corpus.kind == 'text' else source} |"),
        *(f"| {role.replace('_', ' ')} | {getattr(models, role).path} |" for role in type(models).model_fields),
        *("", "## Counts", "", "| | pairs |", "|---|---|"),
        *(f"| {name} | {count} |" for name, count in sorted(counts.items())),
        *("", "requested = kept + removed + invalid + failed. Flags are of kept pairs; one may have several."),
        *("", "## Columns", "", ", ".join(f"`{name}`" for name in COLUMNS.names) + "."),
        *("", "`flags` is JSON: the check and its reason. `generator` and `teacher_model` are fingerprints of the"),
        "checkpoints; `influence` and `guard_influence` are on the validation and guard questions, where scored.",
        *("", "## Checks", "", "```json", config.quality.model_dump_json(indent=2), "```"),
    ]
    if results.is_file():
        arms = json.loads(results.read_text(encoding="utf-8"))["arms"]
        lines += ["", "## Results", "", "Exam accuracy of the target after fine-tuning on each arm:", ""]
        lines += ["| arm | accuracy | 95 % interval |", "|---|---|---|"]
        lines += [f"| {arm} | {row['mean']} | {row['ci95'][0]} to {row['ci95'][1]} |" for arm, row in arms.items()]
    return DatasetCard("\n".join(lines) + "\n")


def push_release(folder: Path, repository: str, private: bool = True) -> str:
    """Upload the folder to the hub and return the commit's address. Raises ValueError without HF_TOKEN."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ValueError("HF_TOKEN is not set; put a token with write access there, in no file")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, repo_type="dataset", folder_path=folder, commit_message="Release of synthetic pairs"
    )
    return done.commit_url
