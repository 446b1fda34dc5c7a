"""A corpus through a real endpoint: windows, resuming, and what a crash, a full disk or a bad server may not do."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from faulty_server import FaultyServer
from pyarrow import parquet

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.profiles import load_config, merge
from rubric_influence.core.records import Document
from rubric_influence.data.documents import read_documents
from rubric_influence.engines.ledger import BudgetReached
from rubric_influence.synthesis.streaming import stream_documents, synthesise_corpus, synthesise_file
from rubric_influence.synthesis.trace import find_in_shards

ROOT = Path(__file__).parents[2]
DOCUMENTS = [Document(f"drug number {number} is a drug .", "", "list") for number in range(40)]


def profile(url: str, **synthesis) -> dict:
    endpoint = dict(base_url=url, concurrency=8, timeout=1.0, backoff=0.01, attempts=30)
    model = dict(path="m", engine="openai", endpoint=endpoint)
    return {
        "models": {"rubric_generator": model, "teacher": model},
        "budget": {"final_pairs": 2},
        "synthesis": {"window": 16} | synthesis,
    }


@pytest.fixture
def configure(monkeypatch):
    monkeypatch.chdir(ROOT)
    return lambda server, **synthesis: load_config("params.yaml", profile(server.url, **synthesis))


def read_rows(out: Path) -> dict[str, list[dict]]:
    return {
        what: [row for path in sorted((out / what).glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
        for what in ("rubrics", "pairs")
    }


def read_answers(out: Path) -> Counter:
    """Key -> how often it was answered and kept."""
    lines = [line for path in (out / "answers").glob("*.jsonl") for line in path.read_bytes().split(b"\n") if line]
    return Counter(json.loads(line)["key"] for line in lines)


@pytest.fixture
def undisturbed(configure, tmp_path):
    with FaultyServer() as server:
        found = synthesise_corpus(DOCUMENTS, configure(server), tmp_path / "undisturbed", 0)
    return found, read_rows(tmp_path / "undisturbed"), len(server.answered), server.url


def test_every_window_is_a_shard_and_counts_add_up(undisturbed, tmp_path):
    found, rows, answered, _ = undisturbed
    assert sorted(path.name for path in (tmp_path / "undisturbed/pairs").iterdir()) == [
        f"{number:05d}.parquet" for number in range(3)
    ]
    assert found["documents"] == 40
    requests = 0
    for what in ("rubrics", "pairs"):
        counts, ledger = found[what], found["ledger"][f"{what}: m"]
        assert counts["requested"] == counts["valid"] + counts["invalid"] + counts["failed"] == len(rows[what])
        assert counts["invalid"] == sum(bool(row["problem"]) for row in rows[what]) > 0
        assert ledger["requests"] == counts["requested"] and ledger["prompt_tokens"] == 10 * counts["requested"]
        requests += counts["requested"]
    assert requests == answered


@pytest.mark.faults
def test_a_server_that_fails_three_times_in_ten_changes_nothing(undisturbed, configure, tmp_path):
    found, rows, answered, _ = undisturbed
    with FaultyServer(faults=0.3, seed=5) as server:
        disturbed = synthesise_corpus(DOCUMENTS, configure(server), tmp_path / "out", 0)
    assert disturbed == found and read_rows(tmp_path / "out") == rows
    assert len(server.answered) == answered and set(server.answered.values()) == {1}
    assert len(+server.faulted) > 8


def test_a_finished_run_asks_nothing_again(configure, tmp_path):
    with FaultyServer() as server:
        first = synthesise_corpus(DOCUMENTS, configure(server), tmp_path / "out", 0)
        asked = len(server.bodies)
        assert synthesise_corpus(DOCUMENTS, configure(server), tmp_path / "out", 0) == first
        more = synthesise_corpus([*DOCUMENTS, Document("one more is a drug .")], configure(server), tmp_path / "out", 0)
    assert more["documents"] == 41 and asked < len(server.bodies) <= asked + 2 * 6
    assert set(server.answered.values()) == {1}


def test_failed_requests_are_kept_with_their_reason_and_asked_for_by_the_next_run(undisturbed, configure, tmp_path):
    found, rows, _, _ = undisturbed
    out = tmp_path / "out"
    with FaultyServer() as server:

        async def refuse(body, writer, respond=server.respond):
            server.faults = float("number 7 " in body["messages"][0]["content"] and "pair :" in str(body))
            return await respond(body, writer)

        server.kinds, server.respond = ("500",), refuse
        config = configure(server)
        endpoint = config.models.teacher.endpoint.model_copy(update={"attempts": 2})
        teacher = config.models.teacher.model_copy(update={"endpoint": endpoint})
        models = config.models.model_copy(update={"teacher": teacher})
        broken = synthesise_corpus(DOCUMENTS, config.model_copy(update={"models": models}), out, 0)
        counts = broken["pairs"]
        assert counts["failed"] == 2
        assert counts["requested"] == counts["valid"] + counts["invalid"] + counts["failed"]
        problems = [row["problem"] for row in read_rows(out)["pairs"] if row["problem"].startswith("request failed")]
        assert problems == ["request failed: HTTP 500: try again, 2 times"] * 2
        server.kinds = ()
        del server.respond
        server.faults = 0.0
        assert synthesise_corpus(DOCUMENTS, config, out, 0) == found
    assert read_rows(out) == rows and set(server.answered.values()) == {1}


def test_a_budget_stops_the_run_and_a_higher_one_goes_on(undisturbed, configure, tmp_path):
    found, rows, answered, _ = undisturbed
    with FaultyServer() as server:
        with pytest.raises(BudgetReached, match="spent .* of synthesis.budget_tokens"):
            synthesise_corpus(DOCUMENTS, configure(server, budget_tokens=2500), tmp_path / "out", 0)
        assert sum(server.answered.values()) * 15 <= 2500
        assert synthesise_corpus(DOCUMENTS, configure(server), tmp_path / "out", 0) == found
    assert read_rows(tmp_path / "out") == rows and set(server.answered.values()) == {1}


@pytest.mark.parametrize("what", ["rubrics", "pairs"])
def test_a_run_of_which_everything_is_refused_stops_early_and_repeats_nothing(configure, tmp_path, what):
    documents = [Document(f"drug number {number} is a drug .", "", "list") for number in range(200)]
    with FaultyServer(malformed=0.0) as server:
        complete = server.complete

        def refuse(body, key):
            answer = complete(body, key)
            if body["messages"][0]["content"].endswith("rubric :") == (what == "rubrics"):
                answer["choices"][0]["message"]["content"] = "I cannot help."
            return answer

        server.complete = refuse
        with pytest.raises(RunStopped, match=rf"answers of m for {what} cannot be used.*no JSON object"):
            synthesise_corpus(documents, configure(server, window=200), tmp_path / "out", 0)
        asked = len(server.bodies)
        assert asked <= 2 * 200 * (what == "pairs") + 100 + 2 * 8  # and what was under way
        with pytest.raises(RunStopped, match="cannot be used"):
            synthesise_corpus(documents, configure(server, window=200), tmp_path / "out", 0)
        assert len(server.bodies) == asked
        server.complete = complete
        found = synthesise_corpus(documents, configure(server, window=200, most_failures=1.0), tmp_path / "out", 0)
    assert set(server.answered.values()) == {1}  # a higher limit goes on with what there is
    assert found[what]["invalid"] >= 100 and found["pairs"]["valid"] == 400


def test_the_command_ends_in_one_where_most_of_a_few_documents_failed(tmp_path):
    with FaultyServer(malformed=1.0) as server:
        process = start(tmp_path, server.url, tmp_path / "out", window=4)
        said = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in said
    assert "synthesis.most_failures (0.5)" in said.strip().splitlines()[-1]


def test_a_run_that_asked_nothing_leaves_no_settings_behind(configure, tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"text": ""}\n')
    with FaultyServer() as server:
        config = configure(server)
        with pytest.raises(ValueError, match="line 1"):
            synthesise_corpus(stream_documents(tmp_path / "documents.jsonl"), config, tmp_path / "out", 0)
        assert not (tmp_path / "out").exists() and not server.bodies
        config = configure(server)
        wrong = config.models.teacher.model_copy(update={"path": "other"})
        (tmp_path / "out").mkdir()
        (tmp_path / "out/run.json").write_text('{"seed": 5}')  # of a run that was refused by its server
        models = config.models.model_copy(update={"teacher": wrong})
        synthesise_corpus(DOCUMENTS[:1], config.model_copy(update={"models": models}), tmp_path / "out", 0)
    assert json.loads((tmp_path / "out/run.json").read_text())["seed"] == 0


def test_answers_read_by_another_version_are_read_anew_and_not_asked_for(configure, tmp_path):
    with FaultyServer() as server:
        config = configure(server)
        found = synthesise_corpus(DOCUMENTS, config, tmp_path / "old", 0)
        path = tmp_path / "old/run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"parser": 0}))
        with pytest.raises(ValueError, match="version that read answers in another way.*; copy .*/old/answers into"):
            synthesise_corpus(DOCUMENTS, config, tmp_path / "old", 0)
        asked = len(server.bodies)
        shutil.copytree(tmp_path / "old/answers", tmp_path / "new/answers")
        assert synthesise_corpus(DOCUMENTS, config, tmp_path / "new", 0) == found
        assert len(server.bodies) == asked


def test_other_settings_are_refused_in_a_folder_that_was_begun(configure, tmp_path):
    with FaultyServer() as server:
        synthesise_corpus(DOCUMENTS[:2], configure(server), tmp_path / "out", 0)
        with pytest.raises(ValueError, match="was begun with other synthesis, seed; set them back or give another"):
            synthesise_corpus(DOCUMENTS[:2], configure(server, temperature=0.5), tmp_path / "out", 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"title": "none"}', "no key 'text'; its keys are"),
        (b'{"text": " "}', "text is ' ', expected non-empty text"),
        (b'{"text": "\\ud800"}', "text holds half a surrogate pair"),
        (b'["a drug"]', "expected a JSON object"),
        (b'{"text": "a drug"', "not JSON"),
        (b'{"text": "a dr\xfcg"}', "not UTF-8 text"),
    ],
)
def test_documents_are_read_line_by_line_and_a_wrong_line_is_named(tmp_path, line, problem):
    path = tmp_path / "documents.jsonl"
    path.write_bytes(b'{"text": "a drug", "title": "t"}\n' + line + b"\n")
    found = stream_documents(path)
    assert next(found) == Document("a drug", "t", "documents.jsonl, line 1")
    with pytest.raises(ValueError, match=f"documents.jsonl, line 2: .*{problem}"):
        next(found)


def test_a_byte_order_mark_and_blank_lines_are_accepted_and_texts_stay_as_they_are(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": " a drug\\n", "source": "list"}\r\n\n \n{"text": "another", "title": null}')
    assert list(stream_documents(path)) == [
        Document(" a drug\n", "", "list"),
        Document("another", "", "documents.jsonl, line 4"),
    ]


def test_a_file_without_documents_is_refused_before_the_run_begins(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="no documents at .*documents.jsonl"):
        synthesise_file(path, load_config(ROOT / "params.yaml"), tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_all_of_a_file_is_checked_before_the_first_request(configure, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"text": "a drug"}) + "\n" + '{"text": 3}\n' * 2)
    with FaultyServer() as server:
        with pytest.raises(ValueError, match=r"(?s)line 2: text is 3, expected.*line 3: text is 3") as error:
            synthesise_file(path, configure(server), tmp_path / "out", 0)
        assert "corpus.skip_faulty_documents" in str(error.value) and not server.bodies
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_formats_is_streamed_and_what_is_left_out_is_said(configure, tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.csv").write_text("text\na drug\nanother drug\n")
    (folder / "b.html").write_text("<nav>menu</nav><p>a third drug</p>")
    (folder / "c.md").write_text("a fourth drug\n")
    (folder / "d.png").touch()
    with FaultyServer() as server:
        found = synthesise_file(folder, configure(server), tmp_path / "out", 0)
    assert found["documents"] == 4
    assert "left out of the documents: 1 x of a format that is not read (.png)" in capsys.readouterr().err
    assert list(stream_documents(folder)) == read_documents(folder).documents


def test_an_absent_path_is_refused_with_what_may_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"no documents at .*nofile; give a file or folder of .txt, .md"):
        synthesise_file(tmp_path / "nofile", load_config(ROOT / "params.yaml"), tmp_path / "out", 0)


def start(folder: Path, url: str, out: Path, **synthesis) -> subprocess.Popen:
    """The command, in a process of its own."""
    values = merge(yaml.safe_load((ROOT / "params.yaml").read_text()), profile(url, **synthesis))
    (folder / "profile.yaml").write_text(yaml.safe_dump(values))
    lines = [json.dumps({"text": document.text, "source": "list"}) for document in DOCUMENTS]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "rubric_influence", "synthesise", "--params", str(folder / "profile.yaml")]
    command += ["--documents", str(folder / "documents.jsonl"), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.faults
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_asks_for_nothing_that_it_has(undisturbed, tmp_path):
    found, rows, answered, _ = undisturbed
    out, rng, kills = tmp_path / "out", random.Random(11), 0
    with FaultyServer(faults=0.1, kinds=("429", "500", "dropped"), delay=0.08, seed=2) as server:
        while True:
            had, before = sum(read_answers(out).values()), Counter(server.answered)
            process = start(tmp_path, server.url, out)
            target = had + rng.randint(1, 12)  # answers that it may write before it is killed
            while process.poll() is None and (kills >= 8 or sum(read_answers(out).values()) < target):
                time.sleep(0.005)
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read()
                break
            process.kill()
            process.communicate()
            kills += 1
            again = sum(min(before[key], 1) for key in server.answered if server.answered[key] > before[key])
            assert again <= 8  # sent whole, but not read when the run before was killed: at most the window
    assert kills >= 8
    assert set(read_answers(out).values()) == {1} and len(read_answers(out)) == answered
    assert json.loads((out / "counts.json").read_text()) == found and read_rows(out) == rows


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_message_and_loses_nothing(undisturbed, tmp_path):
    found, rows, answered, _ = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4200k", "tmpfs", str(disk)], capture_output=True
    ).returncode
    if not mounted:
        pytest.fail("a small tmpfs cannot be mounted here: run the faults as root")
    try:
        with FaultyServer(delay=0.01) as server:
            process = start(tmp_path, server.url, disk / "out")
            said = process.communicate()[1]
            assert process.returncode == 1 and "Traceback" not in said
            assert "is kept: free some space and run the same command again" in said
            assert 0 < len(read_answers(disk / "out")) < answered
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            process = start(tmp_path, server.url, disk / "out")
            said = process.communicate()[1]
            assert process.returncode == 0, said
        assert set(server.answered.values()) == {1}  # nothing that was answered was lost
        assert read_rows(disk / "out") == rows
        assert json.loads((disk / "out/counts.json").read_text()) == found
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.faults
def test_a_damaged_answer_is_asked_for_again_and_no_other(undisturbed, configure, tmp_path):
    found, rows, answered, _ = undisturbed
    out = tmp_path / "out"
    with FaultyServer() as server:
        synthesise_corpus(DOCUMENTS, configure(server), out, 0)
        path = out / "answers/00001.jsonl"
        lines = path.read_bytes().split(b"\n")
        lines[3] = lines[3].replace(b"drug", b"dru6", 1).replace(b"ask", b"asc", 1)
        path.write_bytes(b"\n".join(lines))
        os.unlink(out / "windows.jsonl")
        with pytest.warns(UserWarning, match="line 4 is damaged"):
            assert synthesise_corpus(DOCUMENTS, configure(server), out, 0) == found
    assert read_rows(out) == rows
    assert Counter(server.answered.values()) == {1: answered - 1, 2: 1}


def test_a_pair_of_a_shard_is_traced_to_all_that_made_it(configure, tmp_path):
    documents, corpus, scores = tmp_path / "documents.jsonl", tmp_path / "out", tmp_path / "scores"
    documents.write_text("".join(json.dumps({"text": d.text, "source": d.source}) + "\n" for d in DOCUMENTS))
    with FaultyServer() as server:
        synthesise_corpus(stream_documents(documents), configure(server), corpus, 3)
    pair = next(row for row in read_rows(corpus)["pairs"][-8:] if not row["problem"])
    scores.mkdir()
    for shard in (corpus / "pairs").glob("*.parquet"):
        ids = parquet.read_table(shard, columns=["id"])
        parquet.write_table(ids.append_column("influence", [[0.5] * len(ids)]), scores / shard.name)
    (trace,) = find_in_shards(pair["id"], corpus, documents, scores)
    assert trace["document"]["text"] in [document.text for document in DOCUMENTS[-8:]]
    assert trace["document"]["id"] == pair["document_id"] == trace["rubric"]["document_id"]
    assert trace["rubric"]["id"] == pair["rubric_id"] and trace["rubric"]["text"].startswith("ask ")
    assert (trace["question"], trace["run_seed"], trace["shard"]) == (pair["question"], 3, "00002.parquet")
    assert trace["generator"] and trace["teacher_model"] and trace["prompts"]
    assert trace["influence"] == {"id": pair["id"], "influence": 0.5}
    (bare,) = find_in_shards(pair["id"], corpus)
    assert bare["document"] == {"id": pair["document_id"]} and bare["influence"] is None
    with pytest.raises(ValueError, match="no pair 'x' in"):
        find_in_shards("x", corpus)
    with pytest.raises(ValueError, match="holds no run.json"):
        find_in_shards("x", tmp_path)
