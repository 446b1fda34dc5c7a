import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.influence.variants import cluster_directions
from rubric_influence.core.scratch import Workplace
from rubric_influence.influence.checks.reference import reference_gradient, reference_scores
from rubric_influence.influence.directions import cluster_embeddings
from rubric_influence.influence.embeddings import embed
from rubric_influence.influence.gradients import example_gradients
from rubric_influence.influence.grouping import match_groups
from rubric_influence.influence.moments import load_moments, match_moments
from rubric_influence.models.examples import encode
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.stages.corpus import build_corpus
from rubric_influence.rl.scores import GUARD, VALIDATION, stack_scores
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned


@pytest.fixture(scope="module")
def config(lab_config):
    return lab_config(
        {
            "warmup": {"epochs": 3, "batch_size": 4, "schedule": "linear"},
            "lora": {"r": 4, "alpha": 8},
            "influence": {"normalise": True},
        }
    )


@pytest.fixture(scope="module")
def exam(config):
    """Eight validation items, two a topic, and four of the guard's."""
    items = build_corpus(config.corpus).exam
    validation = [item for item in items if item.split == "validation"]
    guard = [item for item in items if item.split == "guard"]
    return validation[:8] + guard[:4] + [item for item in items if item.split == "test"]


@pytest.fixture(scope="module")
def warmup(config, draw_pairs, tmp_path_factory):
    """A warm-up's last two checkpoints."""
    folder = tmp_path_factory.mktemp("warmup")
    run = TuningRun(config.models.target, config.prompts, config.lora, config.warmup, 0, checkpoints=2)
    fine_tune(run, draw_pairs(12), Workplace(folder / "out", folder / "scratch"))
    return folder / "out"


@pytest.fixture(scope="module")
def pairs(draw_pairs):
    return draw_pairs(6, seed=1)


def with_directions(config, directions, clusters=3, **changes):
    settings = {"directions": directions, "clusters": clusters, **changes}
    return config.model_copy(update={"influence": config.influence.model_copy(update=settings)})


def score_naively(config, warmup, items_by_direction, pairs):
    """[n, k] fp64, one item and one pair at a time: cosines averaged over checkpoints by their learning rates."""
    tokenizer = load_tokenizer(config.models.target)
    examples = [encode(tokenizer, pair.question, pair.answer) for pair in pairs]
    total, rates = 0, 0
    for checkpoint in list_checkpoints(warmup):
        model = load_fine_tuned(config.models.target, checkpoint)
        moments = match_moments(load_moments(checkpoint / "moments.safetensors"), model)
        names = list(moments.exp_avg)
        directions = []
        for items in items_by_direction:
            asked = [encode(tokenizer, item.question, item.answer) for item in items]
            gradients = [reference_gradient(model, example, names) for example in asked]
            flat = torch.stack([torch.cat([g[name].flatten() for name in names]) for g in gradients])
            directions.append(flat.mean(dim=0))
        scores = reference_scores(model, examples, torch.stack(directions), moments, momentum=config.influence.momentum)
        total, rates = total + moments.learning_rate * scores, rates + moments.learning_rate
    return total / rates


@pytest.mark.parametrize("momentum", [False, True])
def test_topics_scores_are_the_papers_formula_for_every_topic_and_the_guard(config, exam, warmup, pairs, momentum):
    config = with_directions(config, "topics", momentum=momentum)
    scorer = TargetScorer(config, warmup, exam, seed=0)
    validation = [item for item in exam if item.split == "validation"]
    topics = sorted({item.topic for item in validation})
    assert scorer.directions.names == [VALIDATION, *topics, GUARD]
    groups = [validation, *([item for item in validation if item.topic == topic] for topic in topics)]
    groups.append([item for item in exam if item.split == "guard"])
    expected = score_naively(config, warmup, groups, pairs)
    torch.testing.assert_close(stack_scores(scorer(pairs)).double(), expected, rtol=0, atol=2e-5)


def test_one_direction_is_that_of_all_validation_items(config, exam, warmup, pairs):
    config = with_directions(config, "mean")
    scorer = TargetScorer(config, warmup, exam, seed=0)
    assert scorer.directions.names == [VALIDATION, GUARD]
    groups = [[item for item in exam if item.split == split] for split in ("validation", "guard")]
    expected = score_naively(config, warmup, groups, pairs)
    torch.testing.assert_close(stack_scores(scorer(pairs)).double(), expected, rtol=0, atol=2e-5)


def cluster_items(config, checkpoint, items, clusters):
    """The items of every cluster of their embeddings at a checkpoint."""
    tokenizer = load_tokenizer(config.models.target)
    model = load_fine_tuned(config.models.target, checkpoint)
    embeddings = embed(model, [encode(tokenizer, i.question, i.answer) for i in items], 1000)
    labels = cluster_embeddings(embeddings, clusters, seed=0)
    return [[i for i, label in zip(items, labels, strict=True) if label == cluster] for cluster in range(clusters)]


def test_a_cluster_is_of_the_same_items_at_every_checkpoint(config, exam, warmup, draw_pairs, pairs, tmp_path):
    # Two checkpoints far apart: a short run's, and that of a long one with a high learning rate.
    shutil.copytree(list_checkpoints(warmup)[0], tmp_path / "out/checkpoint-1")
    long = config.warmup.model_copy(update={"epochs": 8, "learning_rate": 0.02, "schedule": "constant"})
    run = TuningRun(config.models.target, config.prompts, config.lora, long, 1)
    fine_tune(run, draw_pairs(12, seed=5), Workplace(tmp_path / "long", tmp_path / "scratch"))
    shutil.copytree(tmp_path / "long/checkpoint-8", tmp_path / "out/checkpoint-8")
    config = with_directions(config, "clusters", clusters=3)
    validation = [item for item in exam if item.split == "validation"]
    groups, others = (cluster_items(config, c, validation, 3) for c in list_checkpoints(tmp_path / "out"))
    assert groups != others
    scorer = TargetScorer(config, tmp_path / "out", exam, seed=0)
    assert scorer.directions.names == [VALIDATION, "cluster 0", "cluster 1", "cluster 2", GUARD]
    groups = [validation, *groups, [item for item in exam if item.split == "guard"]]
    expected = score_naively(config, tmp_path / "out", groups, pairs)
    torch.testing.assert_close(stack_scores(scorer(pairs)).double(), expected, rtol=0, atol=2e-5)


def test_scores_do_not_change_with_batch_size_order_or_company(config, exam, warmup, pairs):
    whole = stack_scores(TargetScorer(config, warmup, exam, seed=0)(pairs))
    alone = TargetScorer(with_directions(config, "clusters", batch_tokens=1), warmup, exam, seed=0)
    torch.testing.assert_close(stack_scores(alone(pairs[::-1])).flip(0), whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(stack_scores(alone(pairs[2:3])), whole[2:3], rtol=0, atol=2e-5)


def test_a_pair_that_is_the_validation_question_itself_has_positive_influence(config, exam, warmup):
    # Without momentum Gamma is the gradient times a positive factor for each parameter.
    first = next(item for item in exam if item.split == "validation")
    others = [item for item in exam if item.split == "guard"]
    scorer = TargetScorer(with_directions(config, "mean", momentum=False), warmup, [first, *others], seed=0)
    assert scorer([first]).whole_n[0] > 0.3


def test_nothing_is_read_from_dev_or_test_items(config, exam, warmup, pairs):
    with_test = stack_scores(TargetScorer(config, warmup, exam, seed=0)(pairs))
    asked = [item for item in exam if item.split in ("validation", "guard")]
    assert torch.equal(stack_scores(TargetScorer(config, warmup, asked, seed=0)(pairs)), with_test)


def test_questions_are_asked_in_the_profiles_words(lab_config, config, exam, warmup, pairs):
    changed = config.model_copy(update={"prompts": lab_config({"prompts": {"answer": "consider {question}"}}).prompts})
    reworded = [replace(pair, question=f"consider {pair.question}") for pair in pairs]
    asked = [item for item in exam if item.split in ("validation", "guard")]
    scorer = TargetScorer(config, warmup, asked, seed=0)
    scorer.config = changed
    expected = TargetScorer(config, warmup, asked, seed=0)(reworded)
    torch.testing.assert_close(stack_scores(scorer(pairs)), stack_scores(expected))


def test_a_split_without_questions_is_refused(config, exam, warmup):
    with pytest.raises(ValueError, match="0 validation examples"):
        TargetScorer(config, warmup, [item for item in exam if item.split == "validation"], seed=0)


def test_a_groups_weight_is_its_share_of_the_questions(config, exam, warmup):
    validation = [item for item in exam if item.split == "validation"]
    rest = [item for item in exam if item.split != "validation"]
    topics = sorted({item.topic for item in validation})
    fewer = [item for item in validation if item.topic != topics[0]]
    one_less = [*fewer, next(item for item in validation if item.topic == topics[0])]
    served = TargetScorer(with_directions(config, "topics"), warmup, [*one_less, *rest], seed=0).served
    torch.testing.assert_close(served.weight_k, torch.tensor([1 / 7, 2 / 7, 2 / 7, 2 / 7]))
    assert served.unit_k is served.served_k is None


def test_without_groups_all_validation_questions_are_one_direction(config, exam, warmup):
    served = TargetScorer(with_directions(config, "mean"), warmup, exam, seed=0).served
    assert served.weight_k.tolist() == [1.0]


def test_clusters_of_embeddings_are_of_one_topic_each_and_those_of_gradients_are_not(config, lab_config, warmup):
    items = build_corpus(lab_config({"corpus": {"validation_entities": 24}}).corpus).exam
    validation = [item for item in items if item.split == "validation"]
    model = load_fine_tuned(config.models.target, list_checkpoints(warmup)[-1])
    tokenizer = load_tokenizer(config.models.target)
    asked = [encode(tokenizer, item.question, item.answer) for item in validation]

    def share_of_main_topics(labels):
        """Of all items, those of their cluster's most frequent topic."""
        counts = Counter(zip(labels, (item.topic for item in validation), strict=True))
        largest = {label: max(n for (other, _), n in counts.items() if other == label) for label in set(labels)}
        return sum(largest.values()) / len(validation)

    assert share_of_main_topics(cluster_embeddings(embed(model, asked, 2000), 8, seed=0)) > 0.98
    gradients = example_gradients(model, asked, 2000)
    assert share_of_main_topics(cluster_directions(gradients, 8, seed=0)[1]) < 0.98


def test_dev_directions_are_of_the_dev_items_nearest_to_each_group_and_stand_before_the_guards(config, warmup, pairs):
    items = build_corpus(config.corpus).exam
    by_split = {split: [item for item in items if item.split == split] for split in ("validation", "dev", "guard")}
    topics = sorted({item.topic for item in by_split["validation"]})
    chosen = [item for split in by_split.values() for item in split]
    plain = TargetScorer(with_directions(config, "topics"), warmup, chosen, seed=0)
    assert plain.dev_served is None
    config = config.model_copy(update={"rl": config.rl.model_copy(update={"checkpoint": "dev"})})
    scorer = TargetScorer(with_directions(config, "topics"), warmup, chosen, seed=0)
    names = scorer.directions.dev
    assert scorer.directions.groups == plain.directions.groups == tuple(topics)
    assert names and set(names) <= {f"dev, {topic}" for topic in topics}
    assert len(scorer.dev_served.weight_k) == len(names) and scorer.dev_served.weight_k.sum() == pytest.approx(1)
    scores, before = scorer(pairs), plain(pairs)
    assert scores.dev_nj.shape == (6, len(names)) and before.dev_nj.shape == (6, 0)
    torch.testing.assert_close(stack_scores(replace(scores, dev_nj=before.dev_nj)), stack_scores(before))
    # The target's embeddings tell topics apart well enough for most dev items to find their own.
    model, tokenizer = load_fine_tuned(config.models.target, list_checkpoints(warmup)[-1]), scorer.tokenizer
    asked = {k: [encode(tokenizer, i.question, i.answer) for i in v] for k, v in by_split.items()}
    known = [item.topic for item in by_split["validation"]]
    found = match_groups(model, asked["dev"], asked["validation"], known, 1000)
    right = [group == item.topic for group, item in zip(found, by_split["dev"], strict=True)]
    assert sum(right) / len(right) > 0.6


def test_choosing_by_dev_needs_dev_questions(config, exam, warmup):
    config = config.model_copy(update={"rl": config.rl.model_copy(update={"checkpoint": "dev"})})
    with pytest.raises(ValueError, match="rl.checkpoint is dev, and the exam has no dev questions"):
        TargetScorer(config, warmup, exam, seed=0)


def test_questions_that_influence_is_measured_on_are_found_in_other_pairs(config, exam, warmup):
    scorer = TargetScorer(with_directions(config, "mean"), warmup, exam, seed=0)
    for item in exam:
        found = scorer.expert_questions.find(f"Well: {item.question}")
        assert bool(found) == (item.split in ("validation", "guard"))


def test_a_topic_with_the_name_of_another_direction_is_refused(config, exam, warmup):
    renamed = [replace(item, topic="guard") if item.split == "validation" else item for item in exam]
    with pytest.raises(ValueError, match="a topic of the exam is called 'guard', like another direction"):
        TargetScorer(with_directions(config, "topics"), warmup, renamed, seed=0)
