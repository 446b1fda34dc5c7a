"""A released folder loads as a dataset, traces every pair, and goes to a hub (a local one) when asked."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from datasets import load_dataset
from faulty_server import FaultyServer
from huggingface_hub import DatasetCard

from rubric_influence.core.files import write_json, write_records
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric
from rubric_influence.synthesis.release import list_arm, list_shards, push_release, write_release
from rubric_influence.synthesis.streaming import synthesise_corpus
from rubric_influence.synthesis.trace import find_pair

ROOT = Path(__file__).parents[2]
DOCUMENT = Document("velomab is a drug .", "velomab", "list.txt")
RUBRIC = Rubric("ask about the dose .", DOCUMENT.id, "generator", 3, 0)
PAIRS = [
    QAPair("what is the dose ?", "5mg", DOCUMENT.id, RUBRIC.id, "teacher", 3, 0),
    QAPair("", "", DOCUMENT.id, RUBRIC.id, "teacher", 3, 1, "no JSON object", "so"),
    QAPair("what is the dose ?", "5mg", DOCUMENT.id, "", "teacher", 3, 2, "removed: near_duplicate: nearly repeats"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A final set of three pairs, one of them kept, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/final/optimised/seed-0")
    write_records("data/corpus/documents.jsonl", [DOCUMENT])
    write_records(folder / "pairs.jsonl", PAIRS)
    write_records(folder / "rubrics.jsonl", [RUBRIC])
    write_json(folder / "made_by.json", {"seed": 0, "teacher": "t0", "generator": "g0", "prompts": "p0"})
    rows = [
        {"id": p.id, "flags": {"length": "5 words"} if not p.problem else {}, "influence": i}
        for p, i in zip(PAIRS, ({"validation": 0.5, "guard": -0.25}, *[{"validation": None, "guard": None}] * 2))  # noqa: B905
    ]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def config():
    return load_config(ROOT / "params.yaml")


def release(config, out="out"):
    counts = Counter()
    return write_release(Path(out), list_arm("optimised", 0, counts), counts, "cc-by-4.0", config), counts


def test_a_pair_is_traced_to_all_that_made_it(project):
    (trace,) = find_pair(PAIRS[0].id)
    assert trace["document"]["text"] == DOCUMENT.text and trace["document"]["source"] == "list.txt"
    assert trace["rubric"] == {"id": RUBRIC.id, "text": RUBRIC.text, "author": "generator", "seed": 3}
    assert (trace["generator"], trace["teacher"], trace["teacher_model"], trace["seed"]) == ("g0", "teacher", "t0", 3)
    assert trace["influence"] == {"validation": 0.5, "guard": -0.25} and trace["flags"] == {"length": "5 words"}
    with pytest.raises(ValueError, match="no pair 'nowhere' in data/final"):
        find_pair("nowhere")


def test_a_set_that_is_not_whole_is_refused(project):
    Path("data/final/optimised/seed-0/traces.jsonl").unlink()
    with pytest.raises(ValueError, match="lacks data/final/optimised/seed-0/traces.jsonl; run the stage final first"):
        find_pair(PAIRS[0].id)


def test_what_is_released_loads_as_a_dataset_with_its_card(project, config):
    folder, counts = release(config)
    assert counts == {"requested": 3, "kept": 1, "invalid": 1, "removed: near_duplicate": 1, "flagged: length": 1}
    (row,) = load_dataset(str(folder), cache_dir=str(project / "cache"))["train"]
    assert row["question"] == "what is the dose ?" and row["rubric"] == RUBRIC.text and row["influence"] == 0.5
    assert row["generator"] == "g0" and json.loads(row["flags"]) == {"length": "5 words"}
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and "| requested | 3 |" in card.text


def test_nothing_is_written_over_and_a_licence_must_be_named(project, config):
    release(config)
    with pytest.raises(ValueError, match="out is not empty"):
        release(config)
    with pytest.raises(ValueError, match="the licence is empty"):
        write_release(Path("other"), [], Counter(), " ", config)


def test_streamed_shards_are_checked_and_released(tmp_path, config, monkeypatch):
    monkeypatch.chdir(ROOT)
    documents = [Document(f"drug number {number} is a drug .", "", "list") for number in range(20)]
    with FaultyServer() as server:
        model = dict(path="m", engine="openai", endpoint=dict(base_url=server.url))
        changes = {
            "models": {"rubric_generator": model, "teacher": model},
            "budget": {"final_pairs": 2},
            "synthesis": {"window": 8},
            "quality": {"remove": ["exam_words"]},
        }
        streamed = load_config("params.yaml", changes)
        found = synthesise_corpus(documents, streamed, tmp_path / "shards", 0)["pairs"]
    counts = Counter()
    asked = next(iter(list_shards(tmp_path / "shards", streamed, [], Counter())))[0]["question"]
    exam = [ExamItem(asked, ("a", "b"), 0, "test")]
    batches = list_shards(tmp_path / "shards", streamed, exam, counts)
    folder = write_release(tmp_path / "out", batches, counts, "mit", streamed)
    assert counts["requested"] == found["requested"] and counts["removed: exam_words"] >= 1
    assert counts["kept"] + counts["removed: exam_words"] == found["valid"] and counts["invalid"] == found["invalid"]
    rows = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == counts["kept"] and asked not in rows["question"]
    assert all(row["rubric"] and row["generator"] and row["teacher"] == "m" for row in rows)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a push of small files needs; keeps what it is sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.path.endswith("/repos/create"):
            answer = {"url": f"{self.server.url}/datasets/me/set", "name": "me/set"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            answer = {"files": modes}
        elif "/commit/" in self.path:
            answer = {"commitUrl": f"{self.server.url}/datasets/me/set/commit/1", "commitOid": "1", "success": True}
        else:
            answer = {}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "me/set", "sha": "0", "siblings": [], "private": True, "tags": [], "gated": False})

    def reply(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.seen = f"http://127.0.0.1:{server.server_port}", []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_makes_a_private_dataset_with_every_file(project, config, hub, monkeypatch):
    folder, _ = release(config)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    push_release(folder, "me/set")
    assert {authorised for _, authorised, _ in hub.seen} == {"Bearer hf_secret"}
    created = next(json.loads(body) for path, _, body in hub.seen if path.endswith("/repos/create"))
    assert created["visibility"] == "private" and created["type"] == "dataset"
    committed = next(body for path, _, body in hub.seen if "/commit/" in path).decode()
    names = {json.loads(line)["value"]["path"] for line in committed.splitlines() if '"file"' in line}
    assert names == {"README.md", "data/train-00000.parquet"}
    assert not any(b"hf_secret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_push_without_a_token_in_the_environment_is_refused(project, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="HF_TOKEN is not set"):
        push_release(project, "me/set")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "rubric_influence", "release", "--shards", str(tmp_path), "--license", "mit"]
    command += ["--out", str(tmp_path / "out"), "--params", str(ROOT / "params.yaml"), "--exam", "none.jsonl"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "none.jsonl" in done.stderr
