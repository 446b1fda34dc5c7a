"""A corpus at servers that refuse, cut or do not count: what the records say, and what the next run asks."""

from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet
from server_kinds import Kind, KindServer, complete, filter_prompt

from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import Document
from rubric_influence.synthesis.streaming import synthesise_corpus

DOCUMENTS = [Document(f"drug number {number} is a drug .", "", "list") for number in range(12)]
PAIR = '{"question": "what is it ?", "answer": "a drug"}'


def write(body: dict, **more):
    prompt = body["messages"][0]["content"]
    return complete('{"rubric": "ask for the dose"}' if prompt.endswith("rubric :") else PAIR, **more)


def run(server, out: Path) -> dict:
    endpoint = dict(base_url=server.url, concurrency=4, backoff=0.01)
    model = dict(path="m", engine="openai", endpoint=endpoint)
    models = {"rubric_generator": model, "teacher": model}
    return synthesise_corpus(
        DOCUMENTS, load_config("params.yaml", {"models": models, "budget": {"final_pairs": 1}}), out, 0
    )


def count_problems(out: Path) -> Counter:
    shards = [path for what in ("rubrics", "pairs") for path in (out / what).glob("*.parquet")]
    return Counter(row["problem"] for path in shards for row in parquet.read_table(path).to_pylist() if row["problem"])


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_a_document_that_is_filtered_costs_no_other_one_and_no_further_request(tmp_path):
    def reply(body, before):
        return filter_prompt(body, before) if "number 7 " in str(body["messages"]) else write(body)

    with KindServer(Kind("filters one", reply)) as server:
        first = run(server, tmp_path)
        assert len(server.bodies) == 12 + 11
        assert run(server, tmp_path) == first and len(server.bodies) == 12 + 11
    assert (first["rubrics"]["failed"], first["pairs"]["valid"], first["pairs"]["failed"]) == (1, 11, 0)
    ((problem, count),) = count_problems(tmp_path).items()
    assert problem.startswith("request failed: HTTP 400 (content_filter): The response was filtered") and count == 1


def test_an_answer_that_refuses_is_counted_and_asked_for_again_with_another_seed(tmp_path):
    seen = Counter()

    def reply(body, before):
        key = str(body["messages"])
        seen[key] += 1
        return complete(None, refusal="I cannot help.") if "number 7 " in key and seen[key] == 1 else write(body)

    with KindServer(Kind("refuses at first", reply)) as server:
        found = run(server, tmp_path)
    assert found["pairs"]["valid"] == 12 and count_problems(tmp_path) == {"refused: refusal: I cannot help.": 2}
    assert sum(row["prompt_tokens"] for row in found["ledger"].values()) == 10 * (24 + 2) == 10 * len(server.bodies)


def test_an_answer_that_max_tokens_cut_says_so(tmp_path):
    def reply(body, before):
        cut = "number 7 " in str(body["messages"]) and not str(body["messages"]).endswith("rubric :'}]")
        return complete('{"question": "what', "length") if cut else write(body)

    with KindServer(Kind("cuts one", reply)) as server:
        found = run(server, tmp_path)
    assert found["pairs"]["valid"] == 11
    assert count_problems(tmp_path) == {"cut by max_tokens: no JSON object": 3}


def test_what_was_estimated_is_in_the_counts_and_stays_the_same(tmp_path):
    with KindServer(Kind("usage null", lambda body, before: write(body, usage=None))) as server:
        first = run(server, tmp_path)
        (tmp_path / "windows.jsonl").unlink()
        assert run(server, tmp_path) == first and len(server.bodies) == 24
    for row in first["ledger"].values():
        assert row["estimated"] == row["requests"] == 12 and row["prompt_tokens"] > 0 < row["completion_tokens"]
