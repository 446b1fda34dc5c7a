import numpy as np

from rubric_influence.evaluation.exam import Sitting
from rubric_influence.evaluation.plots import plot_exam
from rubric_influence.evaluation.results import print_results
from rubric_influence.evaluation.tasks import TaskScores
from rubric_influence.pipeline.stages.evaluation import compare_sittings

FACTS = {"items": 3, "seeds": 2, "chance": None, "corpus": "lab", "target_parameters": 1}


def sit_open(nats, task):
    nothing = np.full(len(nats), np.nan)
    scores = {"words: perplexity": TaskScores(np.array(task), losses=True)}
    return Sitting(nothing, nothing, np.array(nats), nothing, nothing, nothing), scores


def test_an_exam_of_open_questions_is_judged_by_nats_and_fewer_are_a_gain(lab_config):
    sat = {
        "untuned": [sit_open([3.0, 2.0, 1.0], [9.0, 9.0])] * 2,
        "initial": [sit_open([2.0, 2.0, 2.0], [8.0, 8.0]), sit_open([2.0, 2.0, 2.0], [8.0, 8.0])],
        "optimised": [sit_open([1.0, 1.0, 1.0], [9.0, 9.0]), sit_open([1.0, 1.0, 1.0], [9.0, 9.0])],
    }
    results = compare_sittings(lab_config(), sat, "initial") | FACTS
    assert results["measure"] == "answer_nats" and results["measures"] == {}
    gain = results["arms"]["optimised"]["gain_over_initial"]
    assert gain == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert results["tasks"]["words: perplexity"]["arms"]["optimised"]["gain_over_initial"]["mean"] == -1.0
    shown = print_results(results)
    assert "saved +1.000 nats a token of the answer" in shown and "words: perplexity" in shown
    assert plot_exam(results).axes[0].get_xlabel().startswith("exam, nats a token of the right answer")


def test_questions_with_options_and_open_ones_count_where_they_apply(lab_config):
    def sit_both(right):
        nan = np.nan
        row = [
            np.array(values) for values in ([right, nan], [right, nan], [1.0, 2.0], [0.5, nan], [nan, 1.0], [nan, 0.5])
        ]
        return Sitting(*row), {}

    results = compare_sittings(lab_config(), {"untuned": [sit_both(0.0)], "initial": [sit_both(1.0)]}, "untuned")
    assert results["measure"] == "accuracy"
    assert results["arms"]["initial"]["gain_over_untuned"]["mean"] == 1.0
    counts = {name: found["items"] for name, found in results["measures"].items()}
    assert counts == {"accuracy_by_length": 1, "answer_nats": 2, "option_nats": 1, "exact_match": 1, "token_f1": 1}
