"""A real `vllm serve`, whole, behind the endpoint engine: what a GPU server's users run, with its build for CPUs."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import parquet

from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.profiles import load_config
from rubric_influence.core.records import Document
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.endpoint import EndpointEngine, EndpointError
from rubric_influence.engines.open import open_engine
from rubric_influence.synthesis.parsing import PairOutput, RubricOutput
from rubric_influence.synthesis.streaming import synthesise_corpus

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vllm is not installed: make setup-vllm"),
]
ROOT = Path(__file__).parents[2]
KEY = "the-key-of-the-test"
LONGEST_START = 240.0  # seconds
QUESTIONS = [[{"role": "user", "content": text}] for text in ("What is it?", "the dose", "What is the question?" * 3)]
GREEDY = Sampling(seed=0, max_tokens=24, temperature=0.0)
DRAWN = Sampling(seed=3, max_tokens=24)
# As docs/engines.md has it; the CLI's own name fails with the CPU wheel, which is a package of another name.
SERVE = ["-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "teacher", "--host", "127.0.0.1"]
SERVE += ["--load-format", "safetensors", "--generation-config", "vllm", "--dtype", "float32"]
SERVE += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
# What the build for CPUs has to be told (vllm_engine.CPU_OPTIONS), and a small model's room.
SERVE += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-model-len", "512", "--max-num-batched-tokens", "512"]
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_API_KEY": KEY}


@pytest.fixture(scope="module")
def url(subword_model, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, *SERVE, "--model", str(subword_model), "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + LONGEST_START
        while not is_up(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
            return response.status == 200
    except OSError:
        return False


def describe(url: str) -> dict:
    endpoint = {"base_url": url, "api_key_env": "TEACHER_KEY", "concurrency": 8, "backoff": 0.01, "timeout": 60}
    return {"path": "teacher", "engine": "openai", "endpoint": endpoint}


@pytest.fixture
def engine(url, monkeypatch) -> EndpointEngine:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    return EndpointEngine(ModelSpec(**describe(url)))


def test_greedy_answers_are_as_long_as_those_of_transformers_and_read_the_same(engine, subword_model):
    spec = ModelSpec(path=str(subword_model), dtype="float32", attention="eager")
    served, ours = engine.generate(QUESTIONS, GREEDY), open_engine(spec, batch_size=4).generate(QUESTIONS, GREEDY)
    # The server turns tokens into text, and keeps a blank that leads it.
    assert [c.text.strip() for c in served] == [c.text.strip() for c in ours]
    for count in ("prompt_tokens", "completion_tokens", "finished"):
        assert [getattr(c, count) for c in served] == [getattr(c, count) for c in ours]


def test_a_request_draws_from_its_seed_whatever_else_is_under_way(engine):
    many = engine.generate(QUESTIONS * 8, DRAWN)
    assert engine.generate(QUESTIONS, DRAWN) == many[:3]
    assert engine.generate(QUESTIONS, replace(DRAWN, seed=4)) != many[:3]
    assert len({c.text for c in many[::3]}) > 4  # one conversation, eight times


@pytest.mark.parametrize("schema, fields", [(RubricOutput, ["rubric"]), (PairOutput, ["question", "answer"])])
def test_the_server_holds_a_wild_model_to_the_schema(engine, schema, fields):
    found = engine.generate(QUESTIONS[:1] * 16, Sampling(0, 200, schema=schema))
    assert any(c.finished for c in found)
    for completion in found:
        assert completion.text.startswith(f'{{"{fields[0]}":')
        assert not completion.finished or list(json.loads(completion.text)) == fields


def test_a_wrong_key_stops_at_once_and_is_not_told(engine, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "another-key")
    with pytest.raises(EndpointError, match="HTTP 401") as refused:
        engine.generate(QUESTIONS, GREEDY)
    assert "another-key" not in str(refused.value)


def test_a_corpus_is_written_through_the_server_and_the_same_again(url, monkeypatch, tmp_path):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.chdir(ROOT)
    changes = {
        "models": {"rubric_generator": describe(url), "teacher": describe(url)},
        "budget": {"final_pairs": 2},
        # Cool enough for some of a wild model's texts to be texts.
        "synthesis": {"window": 4, "constrained": True, "temperature": 0.3}
        | {"max_rubric_tokens": 150, "max_pair_tokens": 150},
    }
    documents = [Document(f"drug {number} is a drug.", "", "list") for number in range(6)]
    written = []
    for folder in ("one", "other"):
        counts = synthesise_corpus(documents, load_config("params.yaml", changes), tmp_path / folder, 0)
        for what in ("rubrics", "pairs"):
            found = counts[what]
            assert found["requested"] == found["valid"] + found["invalid"] and found["failed"] == 0 < found["valid"]
        shards = sorted((tmp_path / folder).glob("*/*.parquet"))
        written.append([row for shard in shards for row in parquet.read_table(shard).to_pylist()])
    assert written[0] == written[1]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything
