"""LoRA fine-tuning of the target on question-answer pairs: the warm-up before influence, and every final arm.

TRL's SFTTrainer does the work. This module keeps the optimizer's state at the end of the last epochs, which the
influence score needs, and resumes an interrupted run from its last whole epoch. Processes that `accelerate launch`
starts share every batch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, PeftModel
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from rubric_influence.core.config import FineTuning, Lora, Prompts
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.records import Answered
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.moments import capture_moments, save_moments
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.processes import finish, open_state, share_batch
from rubric_influence.models.progress import show_progress


def build_lora(lora: Lora) -> LoraConfig:
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")


class KeepCheckpoints(TrainerCallback):
    """Writes adapter and Adam moments to folder/checkpoint-<epoch> at the end of each of the `last` epochs."""

    def __init__(self, folder: Path, last: int):
        self.folder, self.last = folder, last
        self.rates: list[float] = []

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: PeftModel = kwargs["model"]
        epoch = round(state.epoch)
        rates, self.rates = self.rates, []
        if epoch <= args.num_train_epochs - self.last or not state.is_world_process_zero:
            return
        moments = capture_moments(model, kwargs["optimizer"], learning_rate=sum(rates) / len(rates))
        target = self.folder / f"checkpoint-{epoch}"
        model.save_pretrained(str(target), safe_serialization=True)
        (target / "README.md").unlink(missing_ok=True)  # peft's empty model card
        path = target / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("target_modules", "target_parameters"):  # peft lists them in the order of a set
            if isinstance(config.get(key), list):
                config[key].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_moments(target / "moments.safetensors", moments)


class FilledSampler(Sampler[int]):
    """The `rows` row numbers that another sampler gives, then the number after them until the last batch is full."""

    def __init__(self, sampler: Sampler[int], rows: int, batch_size: int):
        self.sampler, self.rows, self.missing = sampler, rows, -rows % batch_size

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from [self.rows] * self.missing

    def __len__(self) -> int:
        return self.rows + self.missing


class SharingTrainer(SFTTrainer):
    """SFTTrainer for several processes, each of which must have its part of every batch.

    Where an epoch's last batch is small, accelerate fills it with the epoch's first rows, which would count twice. Here
    it is filled with a row without loss, which is the dataset's last.
    """

    train_dataset: Dataset

    def __init__(self, model: PreTrainedModel, arguments: SFTConfig, **settings: Any):
        super().__init__(model, arguments, **settings)
        shortest = min(self.train_dataset, key=lambda row: len(row["input_ids"]))
        blank = [shortest | {"labels": [-100] * len(shortest["labels"])}]
        blank_rows = Dataset.from_list(blank, features=self.train_dataset.features)
        self.train_dataset = concatenate_datasets([self.train_dataset, blank_rows])

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        rows = len(self.train_dataset) - 1
        sampler = super()._get_train_sampler(self.train_dataset.select(range(rows)))
        assert sampler is not None  # it is None only for a dataset without a length
        return FilledSampler(sampler, rows, self._train_batch_size)


def share_arguments(seed: int) -> dict[str, Any]:
    """The arguments that all of TRL's trainers get here: the machine's precision and device, seeds, no output."""
    gpu = torch.cuda.is_available()
    # CPUs without bf16 units are twenty times slower at bf16.
    machine = {"bf16": gpu, "gradient_checkpointing": gpu, "use_cpu": not gpu}
    return {**machine, "seed": seed, "data_seed": seed, "max_grad_norm": 1.0, "disable_tqdm": True, "report_to": "none"}


def build_arguments(settings: FineTuning, seed: int, folder: str) -> SFTConfig:
    """TRL's arguments for a profile's fine-tuning section: a checkpoint an epoch.

    Raises ValueError for a batch that the processes cannot share.
    """
    at_once, accumulated = share_batch(settings.batch_size, settings.micro_batch, "batch_size")
    return SFTConfig(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        # Accelerate splits it among the processes. The sampler sees it whole, so it draws the batches of one process.
        per_device_train_batch_size=at_once * open_state().num_processes,
        accelerator_config={"split_batches": True},
        gradient_accumulation_steps=accumulated,
        ddp_find_unused_parameters=False,  # every one is used
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        adam_epsilon=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        max_length=settings.max_tokens,
        train_sampling_strategy="group_by_length",  # batches of similar lengths: less padding
        logging_steps=0.1,  # ten lines a run
        save_strategy="epoch",
        save_total_limit=1,
        **share_arguments(seed),
    )


@dataclass(frozen=True)
class TuningRun:
    """One fine-tuning of a model. The last `checkpoints` epochs are kept, each as a checkpoint."""

    spec: ModelSpec
    prompts: Prompts
    lora: Lora
    settings: FineTuning
    seed: int
    checkpoints: int = 1
    name: str = "fine-tuning"  # the progress line's


def fine_tune(run: TuningRun, pairs: Sequence[Answered], place: Workplace) -> list[dict[str, float]]:
    """Fine-tune a fresh LoRA adapter on the pairs; returns the training log.

    The loss is on the answers' tokens alone. place.out receives a folder `checkpoint-<epoch>` for each of the last
    run.checkpoints epochs, with the adapter and `moments.safetensors`. An interrupted run goes on from its last whole
    epoch. Raises ValueError if there are no pairs, or the processes cannot share a batch.
    """
    if not pairs:
        raise ValueError("there are no valid pairs to fine-tune on; look at the rejected pairs' `problem` and `raw`")
    return finish(lambda work: train_adapter(run, pairs, work), "kept", place)


def train_adapter(run: TuningRun, pairs: Sequence[Answered], work: Path) -> list[dict[str, float]]:
    """Train to the end, from the start or the last whole epoch in `work`; work/kept has what `fine_tune` delivers."""
    arguments = build_arguments(run.settings, run.seed, str(work / "trainer"))
    tokenizer = load_tokenizer(run.spec)
    tokenizer.padding_side = "right"
    model = load_model(run.spec)
    model.config.use_cache = False
    template, limit = run.prompts.answer, run.settings.max_tokens
    examples = [encode(tokenizer, pair.question, pair.answer, template, limit) for pair in pairs]
    trainer = (SharingTrainer if open_state().num_processes > 1 else SFTTrainer)(
        model,
        arguments,
        train_dataset=Dataset.from_list([asdict(example) for example in examples]),
        processing_class=tokenizer,
        peft_config=build_lora(run.lora),
        callbacks=[KeepCheckpoints(work / "kept", run.checkpoints)],
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "fine-tuning keeps the optimizer's whole state, of which FSDP and DeepSpeed give each process a part; "
            "launch it with a configuration such as conf/accelerate/node-8gpu.yaml"
        )
    show_progress(trainer, run.name, "loss")
    trainer.train(resume_from_checkpoint=find_whole_checkpoint(work / "trainer"))
    return trainer.state.log_history


def find_whole_checkpoint(folder: str | Path) -> str | None:
    """The trainer's last checkpoint that was written to its end, or None."""
    return next((str(path) for path in reversed(find_checkpoints(folder)) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether every process wrote its part of a checkpoint to the end; the main process writes the trainer's state."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    processes = open_state().num_processes
    return processes == 1 or sum(map(is_zipfile, checkpoint.glob("rng_*"))) == processes


def find_checkpoints(folder: str | Path) -> list[Path]:
    """The folders checkpoint-<number> in a folder, by number."""
    return sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders of a fine-tuning run, first epoch first. Raises ValueError if there are none."""
    if not (found := find_checkpoints(folder)):
        raise ValueError(f"no checkpoint-* folder in {folder}; run the stage that trains it first")
    return found


def load_fine_tuned(spec: ModelSpec, checkpoint: str | Path) -> PeftModel:
    """The base model with one checkpoint's adapter, in eval mode."""
    return PeftModel.from_pretrained(load_model(spec), checkpoint, is_trainable=False).eval()
