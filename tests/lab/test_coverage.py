import random

import pytest

from rubric_influence.lab import world
from rubric_influence.lab.coverage import tabulate_choices


def test_shares_are_over_the_rubrics_that_state_a_choice_and_list_what_none_chooses(medicine):
    rng = random.Random(0)
    topic, other = medicine.exam_topics[:2]
    choices = [world.Choice("essay", topic, "plain", "concise")] * 3
    choices += [world.Choice("short answer", other, "plain", "stepwise")]
    rubrics = [world.write_rubric(medicine, choice, rng) for choice in choices]
    shares = tabulate_choices(medicine, [*rubrics, "ask whatever you like ."])
    assert (shares["topic", topic], shares["topic", other]) == (0.75, 0.25)
    assert (shares["question_type", "essay"], shares["question_type", "fill in the blank"]) == (0.75, 0)
    assert (shares["register", "plain"], shares["register", "technical"]) == (1, 0)
    assert shares.groupby(level=0).sum().tolist() == pytest.approx([1] * 4)
    assert list(shares["topic"].index[:4]) == medicine.exam_topics and len(shares["topic"]) == 8


def test_without_rubrics_every_share_is_zero(medicine):
    assert not tabulate_choices(medicine, []).any()
