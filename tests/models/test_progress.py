import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from rubric_influence.models.progress import show_progress


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


class Points(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, place):
        return {"x": torch.tensor([float(place)]), "labels": torch.tensor([2.0 * place])}


@pytest.fixture
def trainer(tmp_path):
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=3,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_steps=1,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    return Trainer(Line(), arguments, train_dataset=Points())


def test_progress_is_one_line_on_standard_error_and_nothing_is_printed(trainer, capfd):
    show_progress(trainer, "warm-up, seed 3", "loss", "absent")
    trainer.train()
    out, err = capfd.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1].split("\r")[-1]
    assert "warm-up, seed 3: 100%" in last and "3/3" in last
    assert f"loss={trainer.state.log_history[-2]['loss']:.4g}" in last and "absent" not in last


def test_a_resumed_run_starts_its_line_where_it_stopped(trainer, tmp_path, capfd):
    trainer.args.max_steps = 2
    trainer.train()
    trainer.args.max_steps = 3
    capfd.readouterr()
    show_progress(trainer, "training")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = capfd.readouterr().err.replace("\r", "\n").split("\n")
    bars = [line for line in lines if line.startswith("training:")]
    assert "2/3" in bars[0] and "3/3" in bars[-1]
