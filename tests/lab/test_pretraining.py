import json
import random
import re
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import set_seed

from rubric_influence.cli.main import main
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.lab import pretraining
from rubric_influence.lab.networks import build_model, build_tokenizer
from rubric_influence.lab.pretraining import Examples, Recipe, draw_example, pretrain, take_over
from rubric_influence.lab.world import QUESTION_TYPES
from rubric_influence.models.examples import collate, encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.losses import sample_losses
from rubric_influence.pipeline.notebooks import execute
from rubric_influence.synthesis.parsing import parse_pair, parse_rubric

REPOSITORY = Path(__file__).parents[2]
FIELD = REPOSITORY / "data/lab/fields/medicine.yaml"
MODELS = sorted(path.parent for path in (REPOSITORY / "data/lab/models").glob("*/recipe.json"))


def read_defaults(monkeypatch, start=()) -> pretraining.Recipe:
    """What the command trains with when it is given a field and a folder, and perhaps a base to go on from."""
    given = []
    monkeypatch.setattr(pretraining, "pretrain", lambda recipe: given.append(recipe) or {})
    assert main(["lab", "pretrain", "--field", "f", "--out", "o", *start]) == 0
    return given[0]


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_shipped_models_recipe_is_what_the_command_does_by_default(folder, monkeypatch, capsys):
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    start = ["--start", recipe["start"]] if "start" in recipe else []
    defaults = read_defaults(monkeypatch, start)
    for key in ("short_steps", "full_steps", "batch_size", "seed"):
        assert recipe[key] == getattr(defaults, key), key
    assert folder.name == f"{recipe['field']}-{recipe['family']}"
    assert recipe["parameters"] == load_model(ModelSpec(path=str(folder))).num_parameters()


def test_what_the_tasks_ask_for_parses(medicine):
    rng = random.Random(0)
    rubrics = pairs = 0
    for _ in range(300):
        prompt, completion = draw_example(medicine, rng, most_facts=8)
        if prompt.endswith(" rubric :"):
            rubrics += 1
            assert not parse_rubric(completion).problem
        elif prompt.endswith(" pair :"):
            pairs += 1
            assert not parse_pair(completion).problem
    assert rubrics and pairs


def test_documents_are_short_in_the_first_part_of_the_curriculum_and_long_afterwards(medicine):
    tokenizer = build_tokenizer(medicine)
    stream = iter(Examples(medicine, tokenizer, seed=0, short=200))
    facts = []
    for _ in range(600):
        text = tokenizer.decode(next(stream).input_ids)
        document = text.partition("document : ")[2].partition(" rubric : ")[0].partition(" pair : ")[0]
        facts.append(document.partition(" facts : ")[0].count(" .") - 1)  # without "X is a drug ."
    assert max(facts[:200]) == 3
    assert max(facts[200:]) == 8


def test_the_stream_depends_on_the_seed_alone(medicine):
    tokenizer = build_tokenizer(medicine)

    def draw(seed):
        stream = iter(Examples(medicine, tokenizer, seed, short=2))
        return [next(stream) for _ in range(4)]

    assert draw(0) == draw(0) != draw(1)


def test_twenty_steps_lower_the_loss_and_leave_a_folder_that_loads(medicine, tmp_path, capsys):
    out = tmp_path / "base"
    recipe = pretrain(Recipe(str(FIELD), "qwen3", str(out), None, short_steps=10, full_steps=10, batch_size=4))
    assert json.loads((out / "recipe.json").read_text(encoding="utf-8")) == recipe
    spec = ModelSpec(path=str(out), dtype="float32", attention="eager")
    trained, tokenizer = load_model(spec, "cpu"), load_tokenizer(spec)
    set_seed(0)
    untrained = build_model(tokenizer).eval()
    rng = random.Random(99)
    examples = [encode(tokenizer, *draw_example(medicine, rng, most_facts=3)) for _ in range(16)]
    batch = collate(examples, tokenizer.pad_token_id)
    with torch.no_grad():
        before, after = (sample_losses(model, batch).mean().item() for model in (untrained, trained))
    # The untrained model guesses among some 480 words, at ln 480 = 6.2 nats.
    assert before > 5.5
    assert after < before - 0.5
    assert recipe["loss"] < before


def test_a_base_that_goes_on_from_another_field_and_family_has_its_layers_and_known_words(medicine):
    start = REPOSITORY / "data/lab/models/history-qwen3"
    tokenizer = build_tokenizer(medicine)
    set_seed(0)
    model = build_model(tokenizer, "llama")
    drawn = model.get_input_embeddings().weight.detach().clone()
    take_over(model, tokenizer, str(start))
    spec = ModelSpec(path=str(start), dtype="float32", attention="eager")
    known, words = load_model(spec, "cpu").state_dict(), load_tokenizer(spec).get_vocab()
    embeddings = "model.embed_tokens.weight"
    for name, tensor in model.state_dict().items():
        if name not in (embeddings, "lm_head.weight"):
            assert torch.equal(tensor, known[name]), name
    for word, row in tokenizer.get_vocab().items():
        expected = known[embeddings][words[word]] if word in words else drawn[row]
        assert torch.equal(model.get_input_embeddings().weight[row], expected), word


def test_a_base_of_another_size_is_refused(medicine):
    tokenizer = build_tokenizer(medicine)
    with pytest.raises(ValueError, match="not of the new base's architecture and size: they differ in"):
        take_over(build_model(tokenizer, layers=2), tokenizer, str(REPOSITORY / "data/lab/models/history-qwen3"))


@pytest.mark.slow
def test_the_notebook_trains_a_model_and_says_how_faithful_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # the notebook's paths are relative to the project
    out = tmp_path / "base"
    # Four steps, at a learning rate that has hardly risen, leave the shipped model as good a teacher as it is.
    small = {"start": "data/lab/models/medicine-qwen3", "short_steps": 2, "full_steps": 2, "pairs": 48}
    execute("notebooks/tutorials/lab_pretraining.ipynb", tmp_path / "run.ipynb", small | {"out": str(out)})
    recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert (recipe["start"], recipe["short_steps"], recipe["full_steps"]) == ("medicine-qwen3", 2, 2)
    cells = nbformat.read(tmp_path / "run.ipynb", as_version=4).cells
    shown = [output.data for cell in cells for output in cell.get("outputs", [])]
    sentences = [data["text/markdown"] for data in shown if "text/markdown" in data]
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) == len(sentences) == 3 and "nan" not in "".join(sentences)
    assert "document : " in tables[0] and f"{recipe['loss']:.2f} nats a token" in sentences[1]
    valid, stated = (int(share) for share in re.findall(r"(\d+)% (?:are valid|state the fact)", sentences[2]))
    assert all(form in tables[2] for form in QUESTION_TYPES) and sentences[2].startswith("Of 48 pairs")
    assert valid >= 90 and stated >= 60  # 100 and 77
