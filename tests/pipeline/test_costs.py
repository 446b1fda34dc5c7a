import json
from pathlib import Path

import pytest

from rubric_influence.pipeline.costs import (
    PEAK,
    READING,
    SCORING,
    TRAINING,
    WRITING,
    Setting,
    price_teacher,
    print_costs,
    tabulate_hours,
    time_stages,
)

REPOSITORY = Path(__file__).parents[2]
SETTING = Setting(generator=1e9, teacher=4e9, target=2e9, document=100, rubric=10, pair=20, pairs=2, rollouts=50)


def test_stages_take_the_operations_of_their_tokens():
    found = time_stages(SETTING, documents=10)
    # 20 rubrics, twice: 100 tokens read and 10 written by 1e9 parameters.
    assert found["initial and final rubrics"] == pytest.approx(40 * 2e9 * (100 / READING + 10 / WRITING) / PEAK)
    assert found["initial and final pairs (teacher)"] == pytest.approx(40 * 8e9 * (110 / READING + 20 / WRITING) / PEAK)
    assert found["warm-up"] == pytest.approx(0.1 * 20 * 8e9 * 20 / TRAINING / PEAK)
    assert found["fine-tuning"] == pytest.approx(3 * 20 * 8e9 * 20 / TRAINING / PEAK)
    assert found["RL: influence"] == pytest.approx(50 * SCORING * 8e9 * 20 / TRAINING / PEAK)
    assert found["RL: updates"] == pytest.approx(50 * 6e9 * 110 / TRAINING / PEAK)


def test_hours_fall_with_gpus_and_rl_does_not_grow_with_the_corpus():
    hours = tabulate_hours(SETTING, [10, 1000], [1, 8])
    assert hours["10 on 8"]["all"] == pytest.approx(hours["10 on 1"]["all"] / 8)
    assert hours["10 on 1"]["RL: updates"] == hours["1,000 on 1"]["RL: updates"]
    assert hours["10 on 1"]["all"] * 3600 == pytest.approx(sum(time_stages(SETTING, 10).values()))


def test_a_hosted_teacher_is_paid_by_the_token():
    # 2 * 20 pairs and 50 rollouts, 110 tokens read and 20 written each.
    assert price_teacher(SETTING, 10) == pytest.approx(90 * (110 * 0.2 + 20 * 0.6) / 1e6)


def test_the_scoring_factor_is_the_benchmarks():
    measured = json.loads(Path(REPOSITORY, "benchmarks/results/influence.json").read_text())["speed"]
    assert measured["exact_over_plain_step"] == pytest.approx(SCORING, abs=0.005)


def test_the_page_shows_what_the_command_prints():
    page = Path(REPOSITORY, "docs/scale.md").read_text(encoding="utf-8")
    assert print_costs(Setting(), [20_000, 1_000_000], [1, 8, 64]) in page
