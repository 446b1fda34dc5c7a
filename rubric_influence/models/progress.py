"""Progress of training runs as one line that moves, on standard error, where it stays out of results and notebooks."""

from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressLine(TrainerCallback):
    """A bar with steps, rate, time left and the chosen entries of the last log."""

    bar: tqdm  # while training

    def __init__(self, name: str, shown: tuple[str, ...]):
        self.name, self.shown = name, shown

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", mininterval=2)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given["logs"]
        if entries := {key: f"{logs[key]:.4g}" for key in self.shown if key in logs}:  # the run's last log has none
            self.bar.set_postfix(entries, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


def show_progress(trainer: Trainer, name: str, *shown: str) -> None:
    """Give a trainer (with disable_tqdm=True) a progress line in place of its printed logs."""
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(ProgressLine(name, shown))
