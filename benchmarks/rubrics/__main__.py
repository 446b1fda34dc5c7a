"""Does rubric optimisation pay, in every field and for every target, and what else would have done as well?

    python -m benchmarks.rubrics --json FILE [--cells FIELD/TARGET[/TEACHER] ...] [--arms ARM ... | --arms all]
        [--seeds NUMBER]

A cell is the lab's whole pipeline for a field, a target and a teacher, under the default profile's settings: nothing is
tuned for it. Beside the pipeline's arms it has those that tell why the method works: GRPO with the paper's reward, with
that of the published code, with other signals (signals.py), with influence dealt out at random among a step's rubrics,
and with random numbers; the method itself in two rounds, and with its final set chosen from twice the pairs; DPO on
preferences by influence; fixed rubrics that GEPA found; and selection by embedding similarity. Then the rubric
generators that two cells of one field optimised for different targets change places. Accuracies are means over seeds,
with paired bootstrap intervals over seeds and questions.

Without --arms a cell has the pipeline's arms and the paper's reward: ten minutes on two cores. All take half an hour.

Writes FILE and prints tables in Markdown. What is finished is kept in scratch/rubrics, and what FILE holds stays:
cells can be run one by one, and arm by arm. An arm that FILE has already and that is run again must come out the same.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.influence.__main__ import describe_machine
from benchmarks.rubrics.arms import ARMS, SEARCHED
from benchmarks.rubrics.cells import Cell, configure, parse_cell
from benchmarks.rubrics.prompt_search import PACKAGE_NEEDED
from benchmarks.rubrics.runs import run_cell, run_transfer
from benchmarks.rubrics.summary import BASELINE, summarise_cells, tabulate_all
from rubric_influence.core.files import write_json
from rubric_influence.core.paths import TUNED_ARMS, UNTUNED

ALL = "all"
CELL = ("field", "target", "teacher")
PAIR = ("field", "teacher", "from_target", "to_target")


def replace_entry(entries: list[dict], entry: dict, key: tuple[str, ...]) -> list[dict]:
    """The entries with one in place of that of the same key, or at the end."""
    places = [place for place, old in enumerate(entries) if all(old[name] == entry[name] for name in key)]
    place = places[0] if places else len(entries)
    return [*entries[:place], entry, *entries[place + 1 :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write; cells that it holds are kept")
    cells_help = {"nargs": "+", "default": ["medicine/qwen3", "history/qwen3"], "metavar": "FIELD/TARGET[/TEACHER]"}
    parser.add_argument("--cells", **cells_help)
    arms_help = {"choices": (*ARMS, ALL), "metavar": "ARM", "help": ", ".join((*ARMS, ALL))}
    parser.add_argument("--arms", nargs="+", default=[*TUNED_ARMS, "paper_reward"], **arms_help)
    parser.add_argument("--seeds", type=int, help="run seeds 0 to SEEDS - 1 and not those of the profile")
    arguments = parser.parse_args()
    asked = ARMS if ALL in arguments.arms else arguments.arms
    if SEARCHED in asked and not find_spec("gepa"):
        parser.error(PACKAGE_NEEDED)
    try:
        cells = [parse_cell(text) for text in arguments.cells]
        changes = {"seeds": list(range(arguments.seeds))} if arguments.seeds is not None else None
        configure(cells[0], changes)  # refuses a number of seeds that is none
    except ValueError as error:
        parser.error(str(error))
    # Every comparison is with these.
    arms = tuple(arm for arm in (UNTUNED, *ARMS) if arm in (UNTUNED, BASELINE, *asked))
    written = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.is_file() else {}
    entries, transfer = written.get("cells", []), written.get("transfer", [])

    def write() -> dict:
        machine, summary = describe_machine(1), summarise_cells(entries)
        found = {"machine": machine, "cells": entries, "transfer": transfer, "summary": summary}
        write_json(arguments.json, found)
        return found

    for cell in cells:
        print(f"cell {cell}: {len(arms)} arms", file=sys.stderr, flush=True)
        kept = next((entry for entry in entries if Cell(*(entry[name] for name in CELL)) == cell), None)
        entries = replace_entry(entries, run_cell(cell, arms, changes, kept), CELL)
        write()
        for entry in entries:
            other = Cell(*(entry[name] for name in CELL))
            if (other.field, other.teacher) == (cell.field, cell.teacher) and other.target != cell.target:
                for pair in ((cell, other), (other, cell)):
                    if moved := run_transfer(*pair, changes):
                        transfer = replace_entry(transfer, moved, PAIR)
        found = write()
    print(tabulate_all(found))


if __name__ == "__main__":
    main()
