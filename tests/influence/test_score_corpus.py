"""Scores of a corpus, by the command that makes them."""

import functools
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from accelerate import PartialState
from conftest import LEARNING_RATE, build_lora_model, draw_examples, draw_rows, warm_up, write_rows
from peft import PeftModel
from pyarrow import parquet

from rubric_influence.cli.main import main
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.influence import score_corpus as corpus
from rubric_influence.influence.directions import validation_gradients
from rubric_influence.influence.moments import capture_moments, load_moments, save_moments
from rubric_influence.influence.samples import Sample, encode_sample, read_samples
from rubric_influence.influence.score_corpus import score_corpus
from rubric_influence.influence.scorers import combine, open_scorer
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_model
from rubric_influence.models.losses import plan_batches

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH_TOKENS = 64  # one or two samples a batch


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(corpus, "BATCHES_PER_PART", 2)


def arrange(inputs, out, *options, checkpoints=("a", "b"), **files):
    files = {name: str(files.get(name, inputs / f"{name}.jsonl")) for name in ("validation", "samples")}
    checkpoints = [str(inputs / name) for name in checkpoints]
    command = ["score", "--model", str(inputs / "model"), "--validation", files["validation"]]
    command += [part for checkpoint in checkpoints for part in ("--checkpoint", checkpoint)]
    command += ["--samples", files["samples"], "--out", str(out)]
    return command + ["--batch-tokens", str(BATCH_TOKENS), *options]


def load(inputs, name):
    return PeftModel.from_pretrained(build_base(inputs), inputs / name).eval()


def build_base(inputs):
    return load_model(ModelSpec(path=str(inputs / "model"), dtype="float32"))


def score_directly(inputs, tokenizer, groups=None, checkpoints=("a", "b"), **options):
    """[20, k]: the scorers called on all samples at once, along all of validation and every group of it."""
    asked = {}
    for name in ("validation", "samples"):
        rows = [json.loads(line) for line in (inputs / f"{name}.jsonl").read_text().splitlines()]
        asked[name] = [encode(tokenizer, row["question"], row["answer"]) for row in rows]
    settings = {"estimator": "adam", "momentum": False, "normalise": True, "batch_tokens": BATCH_TOKENS} | options
    scores, rates = [], []
    for name in checkpoints:
        model = load(inputs, name)
        moments = load_moments(inputs / name / "moments.safetensors")
        directions = validation_gradients(model, asked["validation"], None, BATCH_TOKENS)
        if groups:
            directions |= validation_gradients(model, asked["validation"], groups, BATCH_TOKENS)
        directions = torch.stack(list(directions.values()))
        scorer = open_scorer(model=model, directions=directions, moments=moments, **settings)
        scores.append(scorer.score(asked["samples"]))
        rates.append(moments.learning_rate)
    return combine(scores, rates)


def assert_scores(table, expected, names):
    assert list(table.columns) == ["id", *names, "tokens"]
    assert torch.equal(torch.from_numpy(table[names].to_numpy(copy=True)), expected)


# Scores


@pytest.fixture(scope="module")
def scored(inputs, tmp_path_factory):
    """The file with the scores of all samples at both checkpoints by topic."""
    out = tmp_path_factory.mktemp("out") / "new" / "scores.parquet"
    assert main(arrange(inputs, out, "--by", "topic")) == 0
    return out


def test_scores_are_bit_for_bit_those_of_the_scorers_called_on_all_samples(inputs, scored, tokenizer):
    expected = score_directly(inputs, tokenizer, groups=["north", "south"] * 3)
    assert_scores(pd.read_parquet(scored), expected, ["influence", "north", "south"])


def test_rows_are_in_the_order_of_the_samples_and_nothing_else_is_left(inputs, scored, tokenizer):
    table = pd.read_parquet(scored)
    rows = read_samples(inputs / "samples.jsonl")
    assert list(table["id"]) == [row.id for row in rows] == [f"s-{number}" for number in range(20)]
    assert list(table["tokens"]) == [len(encode(tokenizer, row.question, row.answer).input_ids) for row in rows]
    assert list(scored.parent.iterdir()) == [scored]  # the parts are gone


def test_the_file_tells_where_its_scores_are_from(inputs, scored):
    origin = json.loads(parquet.read_schema(scored).metadata[b"provenance"])
    assert origin["model"] == str(inputs / "model")
    assert origin["checkpoints"] == [str(inputs / "a"), str(inputs / "b")]
    assert origin["learning_rates"] == [LEARNING_RATE, LEARNING_RATE / 3]
    assert origin["directions"] == {"influence": 6, "north": 3, "south": 3}
    assert (origin["estimator"], origin["momentum"], origin["dot"]) == ("adam", False, False)
    assert origin["versions"]["torch"] == torch.__version__
    hashed = {Path(name).relative_to(inputs).as_posix() for name in origin["sha256"]}
    of_checkpoint = ("adapter_config.json", "adapter_model.safetensors", "moments.safetensors")
    expected = {f"{checkpoint}/{name}" for checkpoint in ("a", "b") for name in of_checkpoint}
    assert hashed == expected | {"validation.jsonl", "samples.jsonl"}


def write_shards(inputs, folder):
    """The samples in shards of 12 and 8, as `synthesise` writes pairs, with one that cannot be used."""
    folder.mkdir()
    rows = [
        {"id": sample.id, "question": sample.question, "answer": sample.answer, "problem": "", "slot": 0}
        for sample in read_samples(inputs / "samples.jsonl")
    ]
    rows.insert(5, {"id": "unusable", "question": "", "answer": "", "problem": "no JSON object", "slot": 0})
    parquet.write_table(pa.Table.from_pylist(rows[:13]), folder / "00000.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[13:]), folder / "00001.parquet")
    parquet.write_table(pa.Table.from_pylist([rows[5]]), folder / "00002.parquet")
    return folder


def test_a_folder_of_shards_is_scored_shard_by_shard_and_what_is_scored_is_left(inputs, tmp_path, monkeypatch):
    shards, out = write_shards(inputs, tmp_path / "pairs"), tmp_path / "scores"
    arguments = arrange(inputs, out, "--by", "topic")
    arguments[arguments.index("--samples") + 1] = str(shards)
    assert main(arguments) == 0
    assert main(arrange(inputs, tmp_path / "whole.parquet", "--by", "topic")) == 0
    assert sorted(file.name for file in out.iterdir()) == ["00000.parquet", "00001.parquet"]  # the third has no pair
    found = pd.concat(pd.read_parquet(file) for file in sorted(out.iterdir()))
    whole = pd.read_parquet(tmp_path / "whole.parquet")
    pd.testing.assert_frame_equal(found.reset_index(drop=True), whole, atol=1e-5)  # other batches
    # Again: only what changed since is scored.
    shard = parquet.read_table(shards / "00001.parquet").slice(0, 3)
    parquet.write_table(shard, shards / "00001.parquet")
    before = (out / "00000.parquet").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "00000.parquet").stat().st_mtime_ns == before
    assert list(pd.read_parquet(out / "00001.parquet")["id"]) == shard.column("id").to_pylist()


def test_what_is_no_folder_of_shards_is_told(inputs, tmp_path, capsys):
    def refuse_shards(samples, out):
        arguments = arrange(inputs, out)
        arguments[arguments.index("--samples") + 1] = str(samples)
        assert main(arguments) == 1
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "no *.parquet in" in refuse_shards(tmp_path / "empty", tmp_path / "scores")
    shards = write_shards(inputs, tmp_path / "pairs")
    (tmp_path / "file").write_text("")
    assert "give --out a folder" in refuse_shards(shards, tmp_path / "file")
    (shards / "00000.parquet").write_bytes(b"PAR1 no")
    assert "00000.parquet is no shard of pairs" in refuse_shards(shards, tmp_path / "scores")
    parquet.write_table(pa.table({"id": ["a"]}), shards / "00000.parquet")
    assert "00000.parquet is no shard of pairs" in refuse_shards(shards, tmp_path / "scores")


@pytest.mark.parametrize(
    "options, settings",
    [
        (["--estimator", "linear", "--momentum"], {"estimator": "linear", "momentum": True}),
        (["--estimator", "forward", "--dot"], {"estimator": "forward", "normalise": False}),
    ],
)
def test_options_are_the_scorers(inputs, tokenizer, tmp_path, options, settings):
    assert main(arrange(inputs, tmp_path / "scores.parquet", *options, checkpoints=["a"])) == 0
    expected = score_directly(inputs, tokenizer, checkpoints=["a"], **settings)
    assert_scores(pd.read_parquet(tmp_path / "scores.parquet"), expected, ["influence"])


def test_the_moments_of_a_trainers_optimizer_give_the_same_scores(inputs, tokenizer, tmp_path):
    model = build_lora_model(tokenizer, "qwen3")
    optimizer = warm_up(model, draw_examples(tokenizer, 48, seed=3))
    for name in ("own", "trainers"):
        model.save_pretrained(tmp_path / name)
    save_moments(tmp_path / "own/moments.safetensors", capture_moments(model, optimizer, 1e-3))
    factors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain = torch.optim.AdamW(factors.values(), lr=1e-3)  # in the model's order, as without weight decay
    plain.state.update({p: optimizer.state[p] for p in factors.values()})
    torch.save(plain.state_dict(), tmp_path / "trainers/optimizer.pt")
    log = {"epoch": 1.0, "log_history": [{"epoch": 1.0, "learning_rate": 1e-3}]}
    (tmp_path / "trainers/trainer_state.json").write_text(json.dumps(log))
    for name in ("own", "trainers"):
        assert main(arrange(inputs, tmp_path / f"{name}.parquet", checkpoints=[tmp_path / name])) == 0
    assert pd.read_parquet(tmp_path / "own.parquet").equals(pd.read_parquet(tmp_path / "trainers.parquet"))


@pytest.mark.distributed
def test_two_processes_write_the_same_bytes_as_one(inputs, tmp_path):
    samples = tmp_path / "samples.jsonl"
    write_rows(samples, draw_rows(60, 3, "s"))  # more than one part of the module's own size
    options = ("--by", "cluster", "--clusters", "2")
    two = arrange(inputs, tmp_path / "two.parquet", *options, checkpoints=["a"], samples=samples)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "rubric_influence", *two]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("checkpoint-0, 2 processes:   0%") == 1  # the main process's line alone
    assert main(arrange(inputs, tmp_path / "one.parquet", *options, checkpoints=["a"], samples=samples)) == 0
    table = pd.read_parquet(tmp_path / "one.parquet")
    assert list(table.columns) == ["id", "influence", "cluster 0", "cluster 1", "tokens"]
    assert len(table) == 60 and not table["cluster 0"].equals(table["cluster 1"])
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


# Resuming


class Interrupted:
    """A scorer whose process is killed when it has scored some parts; it notes how many samples it was given."""

    def __init__(self, scorer, parts):
        self.scorer, self.left, self.given = scorer, parts, 0

    def score(self, examples):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.given += len(examples)
        return self.scorer.score(examples)


@pytest.fixture
def resume(inputs, tokenizer, tmp_path):
    """A function that scores the corpus at checkpoint a until some parts are made; returns samples scored."""
    model = load(inputs, "a")
    samples = read_samples(inputs / "samples.jsonl")
    asked = [encode(tokenizer, item.question, item.answer) for item in read_samples(inputs / "validation.jsonl")]
    moments = load_moments(inputs / "a/moments.safetensors")
    directions = validation_gradients(model, asked, None, BATCH_TOKENS)

    def start(parts=1000, samples=samples, batch_tokens=BATCH_TOKENS, provenance="as before", names=("influence",)):
        vectors = torch.stack([directions["all"]] * len(names))
        scorer = open_scorer("adam", model, vectors, moments, momentum=False, batch_tokens=batch_tokens)
        scorer = Interrupted(scorer, parts)
        arguments = (list(names), samples, lambda s: encode(tokenizer, s.question, s.answer), tmp_path / "out.parquet")
        try:
            score_corpus(PartialState(cpu=True), [lambda: (scorer, 1.0)], *arguments, batch_tokens, {"run": provenance})
        except KeyboardInterrupt:
            assert not (tmp_path / "out.parquet").exists()
        return scorer.given

    return start


def list_parts(tmp_path):
    return sorted(tmp_path.glob("out.parquet.parts/*/checkpoint-0/*.parquet"), key=lambda path: int(path.stem))


def test_a_killed_run_goes_on_from_its_finished_parts(inputs, tokenizer, resume, tmp_path):
    before = resume(parts=3)
    times = {path: path.stat().st_mtime_ns for path in list_parts(tmp_path)}
    assert len(times) == 3
    between = resume(parts=1)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert before + between + resume() == 20
    expected = score_directly(inputs, tokenizer, checkpoints=["a"])
    assert_scores(pd.read_parquet(tmp_path / "out.parquet"), expected, ["influence"])


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "foreign"])
def test_a_damaged_part_and_it_alone_is_scored_anew(inputs, tokenizer, resume, tmp_path, damage):
    resume(parts=4)
    first, second, third, _ = list_parts(tmp_path)
    whole = second.read_bytes()
    flipped = bytearray(whole)
    score = parquet.read_table(second)["influence"][0].as_py()
    flipped[whole.index(struct.pack("<f", score))] ^= 1  # which nothing but a checksum tells
    second.write_bytes({"flipped": bytes(flipped), "cut": whole[:-9], "emptied": b"", "foreign": b"text"}[damage])
    times = [path.stat().st_mtime_ns for path in (first, third)]
    resume(parts=1)
    assert second.read_bytes() == whole
    assert [path.stat().st_mtime_ns for path in (first, third)] == times and len(list_parts(tmp_path)) == 4


@pytest.mark.parametrize(
    "change", [{"provenance": "other"}, {"batch_tokens": BATCH_TOKENS + 1}, {"names": ["north", "south"]}]
)
def test_parts_of_other_settings_are_neither_used_nor_deleted(resume, tmp_path, change):
    resume(parts=2)
    others = list_parts(tmp_path)
    assert resume(**change) == 20
    assert list_parts(tmp_path) == others


def test_parts_of_other_samples_are_not_used_and_other_ids_do_not_matter(inputs, resume, tmp_path):
    samples = read_samples(inputs / "samples.jsonl")
    scored = resume(parts=2)
    assert resume(samples=[*samples[1:], samples[0]]) == 20
    renamed = [Sample(f"renamed {s.id}", s.question, s.answer) for s in samples]
    assert scored + resume(samples=renamed) == 20
    assert list(pd.read_parquet(tmp_path / "out.parquet")["id"]) == [s.id for s in renamed]


def test_changed_files_at_the_same_paths_are_scored_anew(inputs, tmp_path, monkeypatch):
    """A checkpoint trained again, or an exam written again: their parts are others'."""
    shutil.copytree(inputs / "a", tmp_path / "a")
    shutil.copy(inputs / "validation.jsonl", tmp_path)
    identities = set()

    def keep_identity(state, openers, names, samples, tokenise, out, batch_tokens, provenance):
        identities.add(json.dumps(provenance))

    monkeypatch.setattr(corpus, "score_corpus", keep_identity)
    command = arrange(inputs, tmp_path / "o", checkpoints=[tmp_path / "a"], validation=tmp_path / "validation.jsonl")
    changes = [
        lambda: None,
        lambda: shutil.copy(inputs / "b/moments.safetensors", tmp_path / "a"),
        lambda: shutil.copy(inputs / "b/adapter_model.safetensors", tmp_path / "a"),
        lambda: write_rows(tmp_path / "validation.jsonl", draw_rows(5, 9, "v")),
    ]
    for number, change in enumerate(changes, start=1):
        change()
        assert main(command) == 0
        assert len(identities) == number


def test_parts_hold_whole_batches_of_the_corpus(inputs, tokenizer, resume, tmp_path):
    lengths = [len(encode(tokenizer, s.question, s.answer).input_ids) for s in read_samples(inputs / "samples.jsonl")]
    batches = [len(batch) for batch in plan_batches(lengths, BATCH_TOKENS)]
    resume(parts=4)
    sizes = [len(parquet.read_table(path)) for path in list_parts(tmp_path)]
    assert sizes == [sum(batches[i : i + 2]) for i in range(0, 8, 2)]


# What is refused


def test_a_score_that_is_not_finite_is_refused_with_the_samples_id(inputs, tokenizer, tmp_path):
    class Diverged:
        """A stand-in: real gradients are either all finite or, as validation's, refused before."""

        def score(self, examples):
            if any(len(example.input_ids) == longest for example in examples):
                raise ValueError("score of example 0 is not finite")
            return torch.zeros(len(examples), 1)

    samples = read_samples(inputs / "samples.jsonl")
    lengths = [len(encode(tokenizer, s.question, s.answer).input_ids) for s in samples]
    longest = max(lengths)
    culprit = samples[lengths.index(longest)].id
    tokenise = functools.partial(encode_sample, tokenizer, "{question}", None)
    arguments = (["influence"], samples, tokenise, tmp_path / "out.parquet", 64, {})
    with pytest.raises(ValueError, match=f"^sample '{culprit}': score of example 0 is not finite"):
        score_corpus(PartialState(cpu=True), [lambda: (Diverged(), 1.0)], *arguments)


def refuse(capsys, command):
    """The one line that a refused command leaves on standard error."""
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line and "sample/s]" not in line]
    return line


GOOD = {"id": "x", "question": "What is it?", "answer": "A stone."}


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps({"id": "x", "question": "q"}), "line 1: no answer; its keys are"),
        (json.dumps({"text": "t"}), "line 1: no id and no question and no answer; its keys are"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "line 2: id 'x' is that of an earlier line too"),
        (json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"id": "y", "question": "  "}), "line 3: question is '  '"),
        (json.dumps(GOOD | {"answer": ""}), "line 1: answer is '', expected non-empty text"),
        (json.dumps(GOOD | {"answer": None}), "line 1: answer is None, expected non-empty text"),
        (json.dumps(GOOD | {"id": True}), "line 1: id is True, expected non-empty text"),
        (json.dumps(GOOD | {"topic": 5}), "line 1: topic is 5, expected non-empty text"),
        (json.dumps([GOOD]), "line 1: expected a JSON object"),
        ('{"id": "x",', "line 1: not JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
        ("\n", "holds no samples; give one a line"),
        (None, "no file at "),
    ],
)
@pytest.mark.parametrize("role", ["validation", "samples"])
def test_a_file_that_cannot_be_scored_is_refused_with_its_line(inputs, tmp_path, capsys, role, content, message):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refuse(capsys, arrange(inputs, tmp_path / "scores.parquet", **{role: path}))
    assert str(path) in line and message in line


def test_whole_numbers_as_ids_become_text(tmp_path):
    write_rows(tmp_path / "samples.jsonl", [GOOD | {"id": 7}, GOOD | {"id": 0, "topic": None}])
    assert [sample.id for sample in read_samples(tmp_path / "samples.jsonl")] == ["7", "0"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-tokens", "5"], r"sample 'v-0': the answer is wholly cut: the prompt takes"),
        (["--template", "q"], "prompt_template is 'q'; it needs a {question} slot"),
        (["--estimator", "forward"], "the forward estimator gives dot products, no cosines; add --dot"),
        (["--by", "cluster", "--clusters", "9"], "clusters is 9 and there are 6 validation questions"),
        (["--model", "./nowhere"], "no model folder at ./nowhere"),
        (["--out", "."], ". is a folder; give --out the name of a file"),
    ],
)
def test_settings_that_cannot_be_are_refused(inputs, tmp_path, capsys, options, message):
    assert message in refuse(capsys, arrange(inputs, tmp_path / "scores.parquet", *options))


def test_topics_must_be_given_and_must_not_be_called_as_a_column(inputs, tmp_path, capsys):
    path = tmp_path / "validation.jsonl"
    command = arrange(inputs, tmp_path / "scores.parquet", "--by", "topic", validation=path)
    write_rows(path, [GOOD])
    assert "has items without a topic" in refuse(capsys, command)
    write_rows(path, [GOOD | {"topic": "tokens"}])
    assert "have a column 'tokens' already" in refuse(capsys, command)


@pytest.mark.parametrize("arguments", [["--estimator", "fisher"], ["--batch-tokens", "0"], ["--clusters", "many"]])
def test_unknown_choices_and_counts_below_one_are_refused(inputs, tmp_path, capsys, arguments):
    assert main(arrange(inputs, tmp_path / "scores.parquet", *arguments)) == 2
    assert f"Invalid value for '{arguments[0]}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "missing, message",
    [
        ("adapter_config.json", "no adapter_config.json in "),
        ("adapter_model.safetensors", "no adapter_model.safetensors in "),
        ("moments.safetensors", "no optimizer.pt or optimizer.bin in "),
    ],
)
def test_a_checkpoint_without_adapter_or_moments_is_refused(inputs, tmp_path, capsys, missing, message):
    shutil.copytree(inputs / "a", tmp_path / "a")
    (tmp_path / "a" / missing).unlink()
    line = refuse(capsys, arrange(inputs, tmp_path / "scores.parquet", checkpoints=[tmp_path / "a"]))
    assert f"{message}{tmp_path / 'a'}" in line


@pytest.mark.faults
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "moments.safetensors"])
def test_a_damaged_checkpoint_is_refused(inputs, tmp_path, capsys, file):
    shutil.copytree(inputs / "a", tmp_path / "a")
    (tmp_path / "a" / file).write_bytes(b"damaged")
    line = refuse(capsys, arrange(inputs, tmp_path / "scores.parquet", checkpoints=[tmp_path / "a"]))
    assert str(tmp_path / "a") in line
