import torch

from rubric_influence.rl.scores import Directions, stack_scores

DIRECTIONS = Directions(groups=("dose", "mechanism"), dev=("dev, dose",))
ROWS = [[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0], [11.0, 12.0, 13.0, 14.0, 15.0]]


def test_columns_go_by_name():
    assert DIRECTIONS.names == ["validation", "dose", "mechanism", "dev, dose", "guard"]
    scores = DIRECTIONS.split_rows(ROWS)
    assert scores.whole_n.tolist() == [1, 6, 11] and scores.guard_n.tolist() == [5, 10, 15]
    assert scores.groups_nk.tolist() == [[2, 3], [7, 8], [12, 13]] and scores.dev_nj.tolist() == [[4], [9], [14]]


def test_stacking_undoes_splitting():
    assert torch.equal(stack_scores(DIRECTIONS.split(torch.tensor(ROWS))), torch.tensor(ROWS))


def test_rows_are_chosen_alike_in_every_part():
    chosen = DIRECTIONS.split_rows(ROWS)[torch.tensor([True, False, True])]
    assert len(chosen) == 2
    assert stack_scores(chosen).tolist() == [ROWS[0], ROWS[2]]
    assert stack_scores(DIRECTIONS.split_rows(ROWS)[1:2]).tolist() == [ROWS[1]]


def test_a_set_level_reward_is_over_the_groups_or_all_validation_questions():
    assert DIRECTIONS.split_rows(ROWS).rewarded_nk.tolist() == [[2, 3], [7, 8], [12, 13]]
    alone = Directions().split_rows([[1.0, 5.0], [6.0, 10.0]])
    assert alone.rewarded_nk.tolist() == [[1], [6]] and alone.groups_nk.shape == (2, 0)


def test_no_pairs_have_scores_too():
    scores = DIRECTIONS.split_rows([])
    assert len(scores) == 0 and scores.groups_nk.shape == (0, 2) and stack_scores(scores).shape == (0, 5)
