"""A textbook, a pretrained target and its exam: does influence predict what training gains, and does RL on it pay?

    python -m benchmarks.textbooks --profile conf/anatomy-smollm2.yaml --json FILE [--parts gate run] [--arms ARM ...]

The profile names the book, the target and the teacher, which must be running where it is an endpoint. The part `gate`
measures predictions of training gain, `run` the whole method with its baselines. FILE receives figures only, none of
the book's text; figures of other profiles in it stay. A run that is stopped goes on from scratch/textbooks.
"""

import argparse
import json
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from benchmarks.influence.__main__ import describe_machine
from benchmarks.rubrics.arms import ARMS
from benchmarks.textbooks.gate import measure_gate
from benchmarks.textbooks.runs import BASELINE, REWARDS, run_book
from benchmarks.textbooks.summary import describe
from rubric_influence.core.checks import RunStopped
from rubric_influence.core.config import Config
from rubric_influence.core.corpus_sections import BookCorpus
from rubric_influence.core.files import write_json
from rubric_influence.core.fingerprints import hash_weights
from rubric_influence.core.paths import TUNED_ARMS, UNTUNED, list_arms
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import content_id
from rubric_influence.data.book_corpora import build_book
from rubric_influence.data.books import read_book

PARTS = ("gate", "run")
PACKAGES = ("transformers", "trl", "peft", "vllm")


def describe_origin(config: Config, machine: dict) -> dict:
    """What figures are of: machine, versions, seeds, and hashes of the corpus and of each role's weights.

    A hash is null where weights are not in a local folder, and a version where the package is not installed.
    """
    assert isinstance(config.corpus, BookCorpus)
    corpus, roles = build_book(config.corpus), dict(config.models)
    packages = packages_distributions()  # vLLM's build for CPUs goes by another name
    return {
        "machine": machine,
        "versions": {name: version(packages[name][0]) if name in packages else None for name in PACKAGES},
        "seeds": config.seeds,
        "corpus": content_id(*(text.id for text in (*corpus.documents, *corpus.exam))),
        "weights": {
            role: hash_weights(spec.path) if Path(spec.path).is_dir() else None for role, spec in roles.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arms_help = {"choices": (*ARMS,), "metavar": "ARM", "help": f"of the run, besides {UNTUNED}: {', '.join(ARMS)}"}
    parser.add_argument("--arms", nargs="+", **arms_help)
    parser.add_argument("--passages", type=Path, help="another book, whose passages every target of the run reads")
    arguments = parser.parse_args()
    if "run" in arguments.parts and not arguments.passages:
        parser.error("the run measures general ability on passages of another book: name it with --passages")
    try:
        config = load_config(arguments.profile)
        threads = config.machine.threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        if not isinstance(config.corpus, BookCorpus):
            raise ValueError(f"corpus.kind of {arguments.profile} is {config.corpus.kind}; the benchmark takes a book")
        if set(arguments.arms or []) & set(TUNED_ARMS) - set(list_arms(config)):
            raise ValueError(f"{arguments.profile} has no privileged_rubrics; write some, or leave that arm out")
        name = f"{read_book(config.corpus.path, config.corpus.book).name}/{Path(config.models.target.path).name}"
        kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.is_file() else {}
        machine = describe_machine(threads=threads)
        kept = {"gate": {}, "runs": {}} | kept | {"machine": machine}
        origin = {"origin": describe_origin(config, machine)}
        if "gate" in arguments.parts:
            found = measure_gate(config) | origin
            write_json(arguments.json, kept := kept | {"gate": kept["gate"] | {name: found}})
        if "run" in arguments.parts:
            wanted = {UNTUNED, BASELINE, *(arguments.arms or [*list_arms(config), *REWARDS])}
            entry = run_book(config, [arm for arm in (UNTUNED, *ARMS) if arm in wanted], arguments.passages) | origin
            write_json(arguments.json, kept := kept | {"runs": kept["runs"] | {name: entry}})
        print(describe(kept))
    except (ValueError, RunStopped) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
