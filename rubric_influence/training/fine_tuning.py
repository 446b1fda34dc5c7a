"""LoRA fine-tuning of the target on question-answer pairs: the warm-up before influence, and every final arm.

TRL's SFTTrainer does the work; what this adds is the optimizer's state at the end of the last epochs, which the
influence score needs, and resuming from the last whole epoch. Processes that `accelerate launch` starts share every
batch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, PeftModel
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from rubric_influence.core.config import FineTuning, Lora, ModelSpec, Prompts
from rubric_influence.core.records import Answered
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.moments import capture_moments, save_moments
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.processes import finish, open_state, share_batch
from rubric_influence.models.progress import show_progress
from rubric_influence.synthesis.prompts import ask_answer


def build_lora(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


class KeepCheckpoints(TrainerCallback):
    """Writes adapter and Adam moments at the end of each of the last epochs to folder/checkpoint-<epoch>."""

    def __init__(self, folder: Path, last: int):
        self.folder, self.last = folder, last
        self.rates: list[float] = []

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        epoch = round(state.epoch)
        rates, self.rates = self.rates, []
        if epoch <= args.num_train_epochs - self.last or not state.is_world_process_zero:
            return
        moments = capture_moments(kwargs["model"], kwargs["optimizer"], learning_rate=sum(rates) / len(rates))
        target = self.folder / f"checkpoint-{epoch}"
        kwargs["model"].save_pretrained(target, safe_serialization=True)
        (target / "README.md").unlink(missing_ok=True)  # peft's empty model card
        sort_targets(target / "adapter_config.json")
        save_moments(target / "moments.safetensors", moments)


def sort_targets(path: Path) -> None:
    """Write an adapter's config the same way every time: peft lists its modules in the order of a set."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class FilledSampler(Sampler):
    """The rows that another sampler gives, and then a blank one as often as the last batch lacks rows."""

    def __init__(self, sampler: Sampler, blank: int, batch_size: int):
        self.sampler, self.blank, self.missing = sampler, blank, -len(sampler) % batch_size

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from [self.blank] * self.missing

    def __len__(self) -> int:
        return len(self.sampler) + self.missing


class SharingTrainer(SFTTrainer):
    """For several processes, of which each must have its part of every batch.

    Where an epoch's last batch is small, accelerate fills it with the epoch's first rows, which would count twice. Here
    it is filled with a row without loss.
    """

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        shortest = min(self.train_dataset, key=lambda row: len(row["input_ids"]))
        blank = shortest | {"labels": [-100] * len(shortest["labels"])}
        rows = Dataset.from_list([blank], features=self.train_dataset.features)
        self.train_dataset = concatenate_datasets([self.train_dataset, rows])

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        blank = len(dataset) - 1
        return FilledSampler(super()._get_train_sampler(dataset.select(range(blank))), blank, self._train_batch_size)


def share_arguments(seed: int) -> dict:
    """What all of TRL's trainers are given here: precision and device by what the machine has, seeds, silence."""
    gpu = torch.cuda.is_available()
    return {
        "bf16": gpu,  # CPUs without bf16 units are twenty times slower at it
        "gradient_checkpointing": gpu,
        "use_cpu": not gpu,
        "seed": seed,
        "data_seed": seed,
        "max_grad_norm": 1.0,
        "disable_tqdm": True,
        "report_to": "none",
    }


def build_arguments(settings: FineTuning, seed: int, folder: str) -> SFTConfig:
    """TRL's arguments for a fine-tuning section: loss on the answer alone, a checkpoint an epoch.

    Raises ValueError for a batch that the processes cannot share.
    """
    at_once, accumulated = share_batch(settings.batch_size, settings.micro_batch, "batch_size")
    return SFTConfig(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        # Split among the processes: the sampler, which sees it whole, makes the batches that it makes for one.
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
        train_sampling_strategy="group_by_length",  # batches of like length: less padding to compute
        completion_only_loss=True,
        logging_steps=0.1,  # ten lines a run
        save_strategy="epoch",
        save_total_limit=1,
        **share_arguments(seed),
    )


@dataclass(frozen=True)
class TuningRun:
    """One fine-tuning of a model: what is trained, how, and of how many of its last epochs a checkpoint is kept."""

    spec: ModelSpec
    prompts: Prompts
    lora: Lora
    settings: FineTuning
    seed: int
    checkpoints: int = 1
    name: str = "fine-tuning"  # of the progress line


def fine_tune(run: TuningRun, pairs: Sequence[Answered], place: Workplace) -> list[dict]:
    """Fine-tune a fresh LoRA adapter on the pairs; returns the training log.

    Loss is on the answer's tokens alone. place.out receives one folder for each of the last run.checkpoints epochs,
    each with the adapter and `moments.safetensors`. An interrupted run goes on from its last whole epoch.
    Raises ValueError if there are no pairs, or the processes cannot share a batch.
    """
    if not pairs:
        raise ValueError("there are no valid pairs to fine-tune on; look at the rejected pairs' `problem` and `raw`")
    return finish(lambda work: train_adapter(run, pairs, work), "kept", place)


def train_adapter(run: TuningRun, pairs: Sequence[Answered], work: Path) -> list[dict]:
    """Train to the end, or go on to it; work/kept then holds what `fine_tune` delivers."""
    arguments = build_arguments(run.settings, run.seed, str(work / "trainer"))
    tokenizer = load_tokenizer(run.spec)
    tokenizer.padding_side = "right"
    model = load_model(run.spec)
    model.config.use_cache = False
    questions = [ask_answer(run.prompts, pair.question) for pair in pairs]
    answers = [[{"role": "assistant", "content": pair.answer}] for pair in pairs]
    trainer = (SharingTrainer if open_state().num_processes > 1 else SFTTrainer)(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"prompt": questions, "completion": answers}),
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
    """The trainer's last checkpoint that was written to its end, or None.

    The main process writes the trainer's state last, and may do so before others have written their generators' state.
    """
    processes = open_state().num_processes
    written = [path.parent for path in Path(folder).glob("checkpoint-*/trainer_state.json") if is_json(path)]
    whole = [path for path in written if processes == 1 or sum(map(is_zipfile, path.glob("rng_*"))) == processes]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders of a fine-tuning run, first epoch first. Raises ValueError if there are none."""
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    if not found:
        raise ValueError(f"no checkpoint-* folder in {folder}; run the stage that trains it first")
    return found


def load_fine_tuned(spec: ModelSpec, checkpoint: str | Path) -> PeftModel:
    """The target with one checkpoint's adapter, in eval mode."""
    return PeftModel.from_pretrained(load_model(spec), checkpoint, is_trainable=False).eval()
