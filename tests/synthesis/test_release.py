"""A released folder loads as a dataset, traces every pair, and goes to a hub (a local one) when asked."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from faulty_server import FaultyServer
from huggingface_hub import DatasetCard

from rubric_influence.core.config import Quality
from rubric_influence.core.files import write_json, write_records
from rubric_influence.core.paths import METRICS
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric
from rubric_influence.synthesis import release as release_module
from rubric_influence.synthesis.licences import check_licence
from rubric_influence.synthesis.release import Layout, is_test, list_arm, list_shards, push_release, write_release
from rubric_influence.synthesis.streaming import synthesise_corpus
from rubric_influence.synthesis.trace import find_pair, trace_set

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


def test_an_unknown_set_is_told_with_those_that_there_are(project, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no arm 'best' in data/final; its arms are optimised$"):
        next(trace_set("best", 0))
    with pytest.raises(ValueError, match="no seed 3 of the arm optimised in data/final; its seeds are 0$"):
        next(trace_set("optimised", 3))
    monkeypatch.chdir(tmp_path / "data")
    for look in (lambda: find_pair("x"), lambda: next(trace_set("optimised", 0))):
        with pytest.raises(ValueError, match="no final set in data/final; run the stage final first"):
            look()


@pytest.mark.parametrize(
    ("licence", "hint"),
    [("cc-by-4", "did you mean cc-by-4.0"), ("Apache 2.0", "did you mean apache-2.0"), ("mine", "such as cc-by-4.0")],
)
def test_a_licence_that_the_hub_lacks_is_refused_with_the_nearest(licence, hint):
    with pytest.raises(ValueError, match=f"the hub has no licence '{licence}': .*{hint}.*is called other"):
        check_licence(licence)


def test_chunks_of_a_document_are_on_one_side_and_stay_there():
    rows = [
        {"document_id": f"{n}{k}", "document_title": f"chapter {n} ({k}/3)", "document_source": "book.txt"}
        for n in range(200)
        for k in (1, 2, 3)
    ]
    sides = {(row["document_title"][:-6], is_test(row, 0.2)) for row in rows}
    assert len(sides) == 200 and 25 <= sum(side for _, side in sides) <= 55
    assert all(is_test(row, 0.3) for row in rows if is_test(row, 0.2))
    unknown = [{"document_id": str(n), "document_title": None, "document_source": None} for n in range(200)]
    assert 25 <= sum(is_test(row, 0.2) for row in unknown) <= 55


def test_a_split_without_a_document_is_refused_and_leaves_nothing(project, config):
    counts = Counter()
    with pytest.raises(ValueError, match=r"no document of 1 pairs is in (test|train); change --test \(0.5\)"):
        write_release(Path("out"), list_arm("optimised", 0, counts), counts, "mit", config, Layout(test=0.5))
    assert not list(Path().glob("out*"))


def test_what_is_released_loads_as_a_dataset_with_its_card(project, config):
    folder, counts = release(config)
    assert counts == {"requested": 3, "kept": 1, "invalid": 1, "removed: near_duplicate": 1, "flagged: length": 1}
    (row,) = load_dataset(str(folder), cache_dir=str(project / "cache"))["train"]
    assert row["question"] == "what is the dose ?" and row["rubric"] == RUBRIC.text and row["influence"] == 0.5
    assert (row["document"], row["document_title"]) == (DOCUMENT.text, DOCUMENT.title)
    assert row["generator"] == "g0" and json.loads(row["flags"]) == {"length": "5 words"}
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and "| requested | 3 |" in card.text


def test_the_card_names_what_the_exam_measured(project, config):
    arms = {"optimised": {"mean": 1.25, "ci95": [1.0, 1.5]}}
    write_json(project / METRICS / "evaluation.json", {"measure": "answer_nats", "arms": arms})
    folder, _ = release(config)
    text = DatasetCard.load(folder / "README.md").text
    assert "| arm | answer_nats | 95 % interval |" in text and "| optimised | 1.25 | 1.0 to 1.5 |" in text
    assert "accuracy" not in text


def test_nothing_is_written_over_and_a_licence_must_be_named(project, config):
    release(config)
    with pytest.raises(ValueError, match="out is not empty"):
        release(config)
    with pytest.raises(ValueError, match="the hub has no licence ' '"):
        write_release(Path("other"), [], Counter(), " ", config)


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A streamed corpus of twenty documents in tmp_path, its profile and its counts of pairs."""
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
        config = load_config("params.yaml", changes)
        found = synthesise_corpus(documents, config, tmp_path / "shards", 0)["pairs"]
    lines = [json.dumps({"text": document.text, "source": "list"}) for document in documents]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    return config, found


def test_rows_of_shards_have_their_documents_where_these_are_given(streamed, tmp_path, monkeypatch):
    config, documents = streamed[0], tmp_path / "documents.jsonl"
    rows = [row for rows in list_shards(tmp_path / "shards", config, [], Counter(), documents) for row in rows]
    assert len(rows) > 20 and all(Document(row["document"]).id == row["document_id"] for row in rows)
    strict = config.model_copy(update={"quality": Quality(grounding=0.9, remove=["grounding"])})
    counts = Counter()
    assert not any(list_shards(tmp_path / "shards", strict, [], counts, documents))
    assert counts["removed: grounding"] == len(rows)  # what the server writes is not in its documents
    with pytest.raises(ValueError, match="need the corpus's documents: --documents"):
        next(list_shards(tmp_path / "shards", strict, [], Counter()))
    monkeypatch.setattr(release_module, "load_embedder", lambda path: lambda texts: np.eye(len(texts)))
    strict = config.model_copy(
        update={"quality": Quality(embedder="any", grounding_meaning=0.1, remove=["grounding_meaning"])}
    )
    assert not any(list_shards(tmp_path / "shards", strict, [], counts := Counter(), documents))
    assert counts["removed: grounding_meaning"] == len(rows)  # no two texts are alike here
    documents.write_text('{"text": "another"}\n')
    with pytest.raises(ValueError, match="the documents lack 8 of .*00000.parquet; give those that synthesise was"):
        next(list_shards(tmp_path / "shards", config, [], Counter(), documents))


def test_streamed_shards_are_checked_and_released(streamed, tmp_path):
    streamed, found = streamed
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
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no exam at none.jsonl; give --exam" in done.stderr and "--no-exam" in done.stderr
    done = subprocess.run([*command, "--no-exam"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and "holds no run.json of a streamed corpus" in done.stderr


def test_chunks_of_a_document_are_on_one_side_though_each_is_on_a_line_of_its_own():
    rows = [
        {"document_title": f"{title} ({n}/9)", "document_source": f"d.jsonl, line {n}", "document_id": str(n)}
        for title in "abcdef"
        for n in range(1, 10)
    ]
    sides = {title: {is_test(row, 0.5) for row in rows if row["document_title"][0] == title} for title in "abcdef"}
    assert all(len(side) == 1 for side in sides.values()) and {True} in sides.values() and {False} in sides.values()
