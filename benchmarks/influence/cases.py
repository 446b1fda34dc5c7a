"""What every scorer of `peers` is given: model, directions, moments and samples, as a folder that any process reads."""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from rubric_influence.influence.layers import scored_parameters
from rubric_influence.influence.moments import AdamMoments, load_moments, match_moments, save_moments
from rubric_influence.models.examples import Example
from rubric_influence.models.losses import plan_batches


@dataclass(frozen=True)
class Case:
    """What every peer is given.

    folder: the adapter, its base model in base/.
    directions: the w_k, unit, by parameter name [k, *shape], in the order of `scored_parameters`.
    """

    folder: Path
    directions: dict[str, torch.Tensor]
    moments: AdamMoments
    examples: list[Example]
    batch_tokens: int
    attention: str

    @property
    def lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self.examples]

    @property
    def batches(self) -> list[list[int]]:
        """The rows of every batch, as our scorers make them."""
        return plan_batches(self.lengths, self.batch_tokens)

    def load_model(self) -> PeftModel:
        """In eval mode, the adapter trainable."""
        base = AutoModelForCausalLM.from_pretrained(
            self.folder / "base", attn_implementation=self.attention, dtype="auto"
        )
        model = PeftModel.from_pretrained(base, self.folder, is_trainable=True)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def save_case(
    folder: Path,
    model: PeftModel,
    directions: torch.Tensor,
    moments: AdamMoments,
    examples: list[Example],
    batch_tokens: int,
) -> None:
    """Write what `load_case` and PEFT read. directions [k, d] are flat, as a scorer takes them."""
    copy.deepcopy(model).unload().save_pretrained(folder / "base")
    model.save_pretrained(folder, save_embedding_layers=False)
    adapter = folder / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": str(folder / "base")}))
    parameters = scored_parameters(model)
    unit = nn.functional.normalize(directions.detach().float().cpu(), dim=1)
    parts = unit.split([parameter.numel() for parameter in parameters.values()], dim=1)
    named = {n: part.reshape(-1, *p.shape).contiguous() for (n, p), part in zip(parameters.items(), parts, strict=True)}
    save_file(named, folder / "directions.safetensors")
    save_moments(folder / "moments.safetensors", match_moments(moments, model))
    case = {
        "examples": [asdict(example) for example in examples],
        "batch_tokens": batch_tokens,
        "attention": model.config._attn_implementation,
        "parameters": list(parameters),  # a file of tensors keeps no order
    }
    (folder / "case.json").write_text(json.dumps(case))


def load_case(folder: Path, count: int) -> Case:
    """The case against its first `count` directions."""
    case = json.loads((folder / "case.json").read_text())
    directions = load_file(folder / "directions.safetensors")
    return Case(
        folder,
        {name: directions[name][:count].clone() for name in case["parameters"]},
        load_moments(folder / "moments.safetensors"),
        [Example(**example) for example in case["examples"]],
        case["batch_tokens"],
        case["attention"],
    )
