"""The user guide, followed by a newcomer: every command that needs no network, GPU or whole run is run as it stands.

The whole runs that the guide also shows are those of tests/pipeline/test_pipeline.py and test_pubmedqa.py.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clones import clone_project, set_params
from sources import ROOT

from rubric_influence.core.profiles import load_config, merge

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
RUN = re.findall(r"^```bash\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
SECTIONS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)]
SHOWN = [line.strip() for line in re.findall(r"^    (\S.*)", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL), re.M)]
# Whole runs, what asks for packages or another clone, and what wants a GPU.
LONGER = (
    "make ",
    "nohup make ",
    "dvc repro ",
    "dvc exp run --set-param ",
    "dvc queue ",
    "dvc pull",
    "vllm ",
    "accelerate ",
)

GARDEN = {
    "basil": "Basil is sown in April, a few millimetres deep, for its seeds need light. Slugs eat its young leaves.",
    "carrots": "Fresh manure makes the roots of carrots fork. A net of fine mesh keeps the carrot fly away.",
    "garlic": "Garlic needs frost to form bulbs. It is dug up in July, when half of its leaves are yellow.",
    "peas": "Peas fix nitrogen from the air with bacteria in their roots. They climb on twigs of hazel.",
    "potatoes": "Green potatoes hold solanine and are not eaten. Potatoes are earthed up twice, against the light.",
    "pumpkins": "Pumpkins grow best at the edge of the compost. Bees have to visit their flowers, or no fruit is set.",
    "radishes": "Radishes are ready after four weeks. Flea beetles bite small round holes into their leaves.",
    "tomatoes": "Brown rot of tomatoes needs wet leaves, so a roof helps. Their side shoots are broken out each week.",
    "compost": "Ripe compost smells of forest soil. Meat and cooked food attract rats and stay out of it.",
    "rhubarb": "Leaves of rhubarb hold oxalic acid and are not eaten. The plant stays in one place for ten years.",
}
QUESTIONS = [  # the first two are the guide's
    ("What makes the roots of carrots fork?", "fresh manure"),
    ("What keeps the carrot fly away?", "a net of fine mesh"),
    ("What does garlic need to form bulbs?", "frost"),
    ("When is garlic dug up?", "in July"),
    ("What do peas fix from the air?", "nitrogen"),
    ("On what do peas climb?", "twigs of hazel"),
    ("What do green potatoes hold?", "solanine"),
    ("How often are potatoes earthed up?", "twice"),
    ("Where do pumpkins grow best?", "at the edge of the compost"),
    ("Who has to visit the flowers of pumpkins?", "bees"),
    ("How soon are radishes ready?", "after four weeks"),
    ("What bites holes into the leaves of radishes?", "flea beetles"),
    ("What does brown rot of tomatoes need?", "wet leaves"),
    ("What is broken out of tomatoes each week?", "side shoots"),
    ("What does ripe compost smell of?", "forest soil"),
    ("What attracts rats to compost?", "meat and cooked food"),
    ("What do leaves of rhubarb hold?", "oxalic acid"),
    ("How long does rhubarb stay in one place?", "ten years"),
]


def write_files(folder: Path) -> None:
    """Ten texts and twenty questions, and pairs to try."""
    (folder / "documents").mkdir(parents=True)
    for name, text in GARDEN.items():
        (folder / "documents" / f"{name}.txt").write_text(text, encoding="utf-8")
    answers = [answer for _, answer in QUESTIONS]
    with (folder / "exam.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(re.search(r"^question,A,B,C,D,answer\n.*?(?=^```)", GUIDE, re.MULTILINE | re.DOTALL)[0])
        for number, (question, answer) in enumerate(QUESTIONS):
            options = [*(answers[(number + step) % len(answers)] for step in (3, 7, 11))]
            options.insert(number % 4, answer)
            csv.writer(file).writerow([question, *options, "ABCD"[number % 4]])


def run(script: str, folder: Path) -> str:
    """What a block of the guide prints. Ends where one of its commands fails."""
    who = {
        f"GIT_{role}_{what}": "newcomer@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    places = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    environment = os.environ | who | places | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each block of the guide printed, in a clone with a newcomer's own files."""
    folder = clone_project(tmp_path_factory.mktemp("newcomer"))
    run("git add --all && git commit --quiet --message clone", folder)
    write_files(folder / "data/input/mine")
    pairs = [{"id": str(n), "question": asks, "answer": says} for n, (asks, says) in enumerate(QUESTIONS[:4])]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    printed = {}
    for block in RUN:
        printed[block] = run(block, folder)
        if block.startswith("cp conf/"):
            set_params(folder, "params.yaml", SECTIONS[0])
    return printed


def find(printed: dict[str, str], command: str) -> str:
    (output,) = [output for block, output in printed.items() if command in block]
    return output


def test_the_plan_and_the_first_stage_count_the_newcomers_files(printed: dict[str, str]):
    output = find(printed, "rubric-influence plan")
    assert "10 documents, 12 validation, 2 guard, 2 dev, 4 test" in output
    assert "metrics/corpus.json" in output


def test_a_set_of_pairs_is_tried_on_the_newcomers_exam(printed: dict[str, str]):
    assert find(printed, "rubric-influence try").startswith("4 pairs;")


def test_experiments_are_queued_and_shown(printed: dict[str, str]):
    assert find(printed, "dvc queue status").count("Queued") >= 2
    assert find(printed, "dvc exp show").count("Queued") == 2


def test_what_is_not_run_is_a_whole_run_or_wants_more_than_this_machine():
    assert len(SHOWN) > 5
    assert not [line for line in SHOWN if not f"{line} ".startswith(LONGER)]


@pytest.mark.parametrize("changes", SECTIONS, ids=str)
def test_the_sections_of_profiles_are_valid(changes: dict):
    base = "conf/pubmedqa-standin.yaml" if "corpus" in changes else "conf/medicine-qwen3-0.6b.yaml"
    config = load_config(ROOT / base, changes).model_dump()
    assert merge(config, changes) == config


def test_the_profiles_are_those_of_conf():
    assert set(re.findall(r"^\| `(conf/.*?)`", GUIDE, re.MULTILINE)) == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").glob("*.yaml")
    }
