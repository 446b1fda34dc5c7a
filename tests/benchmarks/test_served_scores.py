import json
from pathlib import Path

import pytest
import torch

from benchmarks.influence.served import agree, tabulate

ROOT = Path(__file__).parents[2]


def test_the_docs_have_the_committed_curve():
    found = json.loads((ROOT / "benchmarks/results/influence-served.json").read_text(encoding="utf-8"))
    assert tabulate(found["curve"]) in (ROOT / "docs/influence.md").read_text(encoding="utf-8")


def test_served_scores_agree_with_torchs_at_every_step_in_float32():
    found = json.loads((ROOT / "benchmarks/results/influence-served.json").read_text(encoding="utf-8"))
    served = [entry for entry in found["curve"] if (entry["engine"], entry["dtype"]) == ("vllm", "float32")]
    assert min(entry["spearman_vs_torch"] for entry in served) >= 0.99
    (default,) = [entry for entry in served if entry["relative_step"] == found["settings"]["relative_step"]]
    assert default["relative_error_vs_torch"] < 1e-4


def test_agreement_is_the_worst_of_the_directions():
    # First: reversed ranks, |(2, 0, -2)| / |(1, 2, 3)|. Second: the same ranks, |(0, 0, 1)| / |(1, 2, 2.5)|.
    expected = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 2.5]])
    found = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.5]])
    spearman, error = agree(found, expected)
    assert spearman == pytest.approx(-1)
    assert error == pytest.approx((8 / 14) ** 0.5)
