"""The estimator forward, scored by an inference engine: no copy of the target is kept in a training framework.

u_k lies in the space of the LoRA factors, so theta + h*u_k is a LoRA adapter of the same shape: lora_A + h*u_A and
lora_B + h*u_B. `export_scorer` writes two adapters a direction, and then the model may go. `ServedScorer` asks an
engine for the samples' losses under each of them, and does `scorers.Differences`' arithmetic.

Differences of losses are small, and what an engine computes is not torch's to the bit. So some samples are scored by
torch before the model goes, and the engine has to give their scores again before it gives any other.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from rubric_influence.influence.layers import listed, scored_parameters
from rubric_influence.influence.scorers import Differences, ForwardScorer, moved
from rubric_influence.models.examples import Example

# Of the engine's scores, against torch's. In float32 vLLM keeps to 1e-4, in bfloat16 it does not come below 0.1
# (docs/influence.md, "Served scores").
TOLERANCE = 0.05
FACTORS = (".lora_A.", ".lora_B.")

# Each example's mean loss over its labelled tokens under the adapter in a folder, [n], fp64, in nats.
AdapterLosses = Callable[[Path, Sequence[Example]], torch.Tensor]


@dataclass(frozen=True)
class ExportedScorer:
    """A checkpoint's ForwardScorer without its model.

    adapters: by direction k the folders of theta + h_k*u_k and theta - h_k*u_k.
    probe, expected: samples, and the ForwardScorer's own scores of them, [n, k].
    """

    differences: Differences
    adapters: list[tuple[Path, Path]]
    probe: list[Example]
    expected: torch.Tensor


class ServedScorer:
    """Scores samples along an exported scorer's directions, by the losses that an engine measures.

    Raises ValueError if the engine's scores of the probe are further than `tolerance` from torch's: it then rounds
    too coarsely, or does not serve that adapter, or not on that model.
    """

    def __init__(self, exported: ExportedScorer, losses: AdapterLosses, tolerance: float = TOLERANCE):
        self.differences, self.adapters, self.losses = exported.differences, exported.adapters, losses
        errors = relative_errors(self.score(exported.probe), exported.expected, exported.differences.common)
        if not (worst := errors.max().item()) <= tolerance:  # nor is it a number where torch's scores are all 0
            raise ValueError(
                f"the engine's scores of {len(exported.probe)} samples are {worst:.2g} of their size from torch's, "
                f"expected at most {tolerance:g}; serve the model in float32 with the adapter that the checkpoint has "
                "(on a GPU set TRITON_F32_DEFAULT=ieee, as kernels may multiply in TF32), or score without the engine"
            )

    def score(self, examples: Sequence[Example]) -> torch.Tensor:
        pairs = [torch.stack([self.losses(adapter, examples) for adapter in pair]) for pair in self.adapters]
        return self.differences.score(torch.stack(pairs))


def export_scorer(scorer: ForwardScorer, folder: Path, probe: Sequence[Example]) -> ExportedScorer:
    """The scorer without its model, whose moved adapters are written below `folder`, as peft saves them.

    Raises ValueError for a model that is no PEFT model in which LoRA factors of linear layers are trained, and nothing
    else: a LoRA adapter cannot hold the rest.
    """
    model = scorer.model
    others = [name for name in scored_parameters(model) if not any(part in name for part in FACTORS)]
    if others or not isinstance(model, PeftModel):
        raise ValueError(f"an adapter cannot hold all that is trained: {listed(others)}; train LoRA on linear layers")
    adapters = []
    for number, offset in enumerate(scorer.offsets):
        pair = folder / f"{number}-plus", folder / f"{number}-minus"
        for path, moving in zip(pair, (offset, -offset), strict=True):
            with moved(model, moving):
                write_adapter(model, path)
        adapters.append(pair)
    return ExportedScorer(scorer.differences, adapters, list(probe), scorer.score(probe))


def write_adapter(model: PeftModel, folder: Path) -> None:
    """The model's active adapter as peft saves it."""
    name = model.active_adapter
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    model.peft_config[name].save_pretrained(str(folder))


def relative_errors(found: torch.Tensor, expected: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """|found - expected| / |expected - common| by direction, over samples: [n, k], [n, k], [k] -> [k], fp64."""
    found, expected = found.double(), expected.double()
    return (found - expected).norm(dim=0) / (expected - common).norm(dim=0)


def free_memory() -> None:
    """Give back what models out of use held, on the GPU too, where an engine takes a share of what is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
