"""The rubric generator's warm start: by supervised fine-tuning it learns to write a profile's seed rubrics.

A departure from the paper, whose generator of eight billion parameters writes varied rubrics as it is. One of 135
million parameters copies its prompt, so that RL would have nothing to choose among. After the warm start it writes
rubrics of all the kinds that the profile names, about equally often, whether they are any good or not.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rubric_influence.core.config import Config
from rubric_influence.core.files import write_json
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.records import Document, content_id
from rubric_influence.core.scratch import Workplace, scratch_folder
from rubric_influence.influence.samples import Sample
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.synthesis.prompts import ask_rubric
from rubric_influence.synthesis.writing import deal_rubrics
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

RECIPE = "warm_start.json"  # in the model's folder: a hash of what it was made of


def write_samples(config: Config, documents: Sequence[Document]) -> list[Sample]:
    """What the generator learns: to answer the prompt for a document with a seed rubric as JSON, dealt out in turn."""
    assert config.warm_start
    texts = {document.id: document.text for document in documents}
    dealt = deal_rubrics(config.warm_start.rubrics, "seed", documents, config.warm_start.rubrics_per_document)
    return [
        Sample(
            rubric.id,
            ask_rubric(config.prompts, texts[rubric.document_id])[0]["content"],
            json.dumps({"rubric": rubric.text}, ensure_ascii=False),
        )
        for rubric in dealt
    ]


def make_generator(config: Config, documents: Sequence[Document]) -> bool:
    """Make the model models.rubric_generator of warm_start.base. False: it is there already, made of the same.

    Adapters are of rl.lora, or of lora where RL trains all weights, and are merged. A run that was stopped goes on.
    Raises ValueError where the profile has no warm_start, or where something else is in the folder.
    """
    settings = config.warm_start
    if settings is None:
        raise ValueError("the profile has no section warm_start; write one, as conf/anatomy-smollm2.yaml does")
    out, seed, lora = Path(config.models.rubric_generator.path), config.seeds[0], config.rl.lora or config.lora
    samples = write_samples(config, documents)
    identity = (fingerprint(settings.base), samples, lora, settings.model_dump(exclude={"base", "rubrics"}), seed)
    recipe = {"made_of": content_id(*identity), "base": settings.base.path}
    if out.exists():
        if (out / RECIPE).is_file() and json.loads((out / RECIPE).read_text(encoding="utf-8")) == recipe:
            return False
        raise ValueError(
            f"{out} (models.rubric_generator) is there already and was made of something else than this profile's "
            "warm_start; remove it, or name another folder"
        )
    folder = scratch_folder("warm_start", *identity)
    prompts = config.prompts.model_copy(update={"answer": "{question}"})  # a sample's question is the whole prompt
    run = TuningRun(settings.base, prompts, lora, settings, seed, name="warm start")
    fine_tune(run, samples, Workplace(folder / "adapter", folder / "state"))
    making = out.with_name(f"{out.name}.partial")
    model = load_fine_tuned(settings.base, list_checkpoints(folder / "adapter")[-1]).merge_and_unload()
    model.save_pretrained(making, safe_serialization=True)
    load_tokenizer(settings.base).save_pretrained(making)
    write_json(making / RECIPE, recipe)
    making.rename(out)
    return True
