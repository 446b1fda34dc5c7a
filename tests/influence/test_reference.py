import pytest
import torch

from rubric_influence.influence.checks.reference import reference_gamma
from rubric_influence.influence.moments import AdamMoments


def test_gamma_is_the_step_of_torch_adamw():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0)
    for _ in range(3):
        parameter.grad = torch.randn(5, dtype=torch.float64)
        optimizer.step()
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    before, gradient = parameter.detach().clone(), torch.randn(5, dtype=torch.float64)
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments = AdamMoments({"w": m}, {"w": v}, step=3, betas=(0.8, 0.95), eps=1e-3, learning_rate=0.1)
    gamma = reference_gamma(gradient, m, v, moments)
    parameter.grad = gradient
    optimizer.step()
    assert (before - 0.1 * gamma).tolist() == pytest.approx(parameter.detach().tolist(), rel=1e-12)
