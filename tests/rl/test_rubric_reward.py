import json
from types import SimpleNamespace

import pytest
import torch

from rubric_influence.core.checks import RunStopped
from rubric_influence.core.records import Document, ExamItem
from rubric_influence.data.contamination import ContaminationIndex
from rubric_influence.engines.base import Completion
from rubric_influence.rl.rewards import ServedDirections
from rubric_influence.rl.rubric_reward import RubricReward
from rubric_influence.rl.scores import Directions

DOCUMENTS = [Document("velomab is a drug ."), Document("zorvax is a drug .")]
GOOD = '{"rubric": "ask a short answer question"}'


class ScriptedTeacher:
    """Writes the given texts in turn, and keeps what it was asked with which seed."""

    name = "scripted"

    def __init__(self, texts):
        self.texts, self.asked, self.seeds = list(texts), [], []

    def generate(self, conversations, sampling):
        self.asked += [conversation[0]["content"] for conversation in conversations]
        self.seeds.append(sampling.seed)
        return [Completion(self.texts.pop(0), 5, 9, True) for _ in conversations]


def write_pair(answer):
    return json.dumps({"question": f"what is {answer} ?", "answer": answer})


# Influence along all validation questions, along two groups of them, and the guard's, by answer.
INFLUENCE = {
    "a": [0.3, 0.4, 0.0, 0.1],
    "b": [0.2, 0.2, 0.2, -0.1],
    "c": [0.5, 0.0, 0.6, 0.3],
    "d": [0.1234567, -0.3, 0.1, 0.0],
}


class Score:
    """Looks influence up; the unit is 1 along either group."""

    directions = Directions(("first", "other"))
    served = ServedDirections(torch.tensor([0.5, 0.5]), torch.ones(2))
    dev_served = None
    expert_questions = ContaminationIndex([ExamItem("what is the secret dose ?", "40mg", (), split="guard")])

    def __call__(self, pairs):
        return self.directions.split_rows([INFLUENCE[pair.answer] for pair in pairs])


def make_reward(config, log, texts=(), seed=0):
    return RubricReward(config, DOCUMENTS, ScriptedTeacher(texts), Score(), seed, log)


def call(reward, completions, step, metrics=None):
    """As TRL does: conversational completions, and a document for each."""
    documents = [DOCUMENTS[place % 2].id for place in range(len(completions))]
    record = (metrics if metrics is not None else {}).__setitem__
    chats = [[{"role": "assistant", "content": completion}] for completion in completions]
    state = SimpleNamespace(global_step=step)
    return reward(completions=chats, document_id=documents, trainer_state=state, log_metric=record)


def read_log(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def plain(lab_config):
    return lab_config({"rl": {"reward": "influence", "invalid_penalty": 0.1}})


@pytest.fixture
def set_level(lab_config):
    return lab_config({"rl": {"reward": "set_influence", "invalid_penalty": 0.1}})


def test_a_rubric_gets_its_pairs_influence_and_an_invalid_one_the_penalty(plain, tmp_path):
    malformed = ["", "no rubric here", '{"rubric": "\\ud800 ask it"}']
    metrics = {}
    reward = make_reward(plain, tmp_path / "log", [write_pair("a"), write_pair("b")])
    rewards = call(reward, [GOOD, *malformed, GOOD], 0, metrics)
    # Influence along all validation questions, and three penalties; groups and guard count for nothing.
    assert rewards == pytest.approx([0.3, -0.1, -0.1, -0.1, 0.2])
    shown = {name: metrics[name] for name in ("valid", "influence", "guard_influence", "distinct_rubrics")}
    assert shown == pytest.approx(dict(valid=0.4, influence=0.25, guard_influence=0.0, distinct_rubrics=0.8))
    asked = "document : velomab is a drug . rubric : ask a short answer question pair :"
    assert reward.teacher.asked == [asked, asked]  # nothing is asked for an invalid rubric


def test_a_rubric_whose_pairs_cannot_be_used_gets_the_penalty(plain, tmp_path):
    assert call(make_reward(plain, tmp_path / "log", ["no pair", write_pair("a")]), [GOOD, GOOD], 0) == pytest.approx(
        [-0.1, 0.3]
    )


def test_a_step_without_a_valid_rubric_costs_every_one_the_penalty(plain, set_level, tmp_path):
    for name, config in (("plain", plain), ("set", set_level)):
        reward = make_reward(config, tmp_path / name, [write_pair("c")])
        assert call(reward, ["no", "no"], 0) == pytest.approx([-0.1, -0.1])
        call(reward, [GOOD], 1)
        assert call(reward, ["no", "no"], 2) == pytest.approx([-0.1, -0.1])


def test_a_rubric_of_several_pairs_gets_their_mean_and_the_penalty_for_each_that_cannot_be_used(lab_config, tmp_path):
    config = lab_config({"rl": {"reward": "influence", "pairs_per_rubric": 3, "invalid_penalty": 0.1}})
    texts = [write_pair("a"), "no pair", write_pair("c"), write_pair("b"), write_pair("b"), write_pair("b")]
    rewards = call(make_reward(config, tmp_path / "log", texts), [GOOD, "no rubric", GOOD], 0)
    assert rewards == pytest.approx([(0.3 - 0.1 + 0.5) / 3, -0.1, 0.2])


def test_pairs_of_one_rubric_are_credited_for_the_directions_that_each_serves(lab_config, tmp_path):
    config = lab_config({"rl": {"reward": "set_influence", "pairs_per_rubric": 2}})
    texts = [write_pair("a"), write_pair("c"), write_pair("c"), write_pair("c")]
    rewards = call(make_reward(config, tmp_path / "log", texts), [GOOD, GOOD], 0)
    # Served are 0.4 / 4 and 3 * 0.6 / 4, 0.275 would be fair: a pair of the first direction is scarce, 2.75, of the
    # other not, 0.275 / 0.45; qualities 0.4 and 0.6 are over their mean, 0.55.
    first, other = 0.4 * 2.75 / 0.55, 0.6 * (0.275 / 0.45) / 0.55
    assert rewards == pytest.approx([(first + other) / 2, other])


def test_a_pair_that_repeats_a_question_that_influence_is_measured_on_cannot_be_used(plain, tmp_path):
    leaked = json.dumps({"question": "Tell me: what is the secret dose?", "answer": "a"})
    reward = make_reward(plain, tmp_path / "log", [leaked, write_pair("a")])
    assert call(reward, [GOOD, GOOD], 0) == pytest.approx([-0.1, 0.3])
    (pair,) = read_log(tmp_path / "log")[0]["pairs"]
    assert "words with guard question" in pair["problem"] and pair["raw"] == leaked


def test_a_pair_that_would_be_left_out_of_a_final_set_earns_the_penalty(lab_config, tmp_path, monkeypatch):
    rl = {"reward": "influence", "invalid_penalty": 0.1}
    monkeypatch.setitem(INFLUENCE, "velomab", [0.3, 0.0, 0.0, 0.0])
    for remove, expected in (([], [0.3, 0.3]), (["grounding"], [0.3, -0.1])):
        config = lab_config({"rl": rl, "quality": {"grounding": 0.5, "remove": remove}})
        reward = make_reward(config, tmp_path / str(len(remove)), [write_pair("velomab")] * 2)
        # Both documents' rubrics are answered with "velomab", which only the first document names.
        assert call(reward, [GOOD, GOOD], 0) == pytest.approx(expected)


def test_the_set_level_reward_remembers_earlier_steps(set_level, tmp_path):
    reward = make_reward(set_level, tmp_path / "log", [write_pair("a"), write_pair("c"), write_pair("a")])
    first = call(reward, [GOOD, GOOD], 0)
    # Served 0.2 and 0.3, 0.25 would be fair: 0.4 * (0.25 / 0.2) / 0.5 and 0.6 * (0.25 / 0.3) / 0.5.
    assert first == pytest.approx([1.0, 1.0])
    # Served (0.2 + 0.4) / 2 and 0.3 / 2, 0.225 would be fair: 0.4 * (0.225 / 0.3) / 0.45.
    assert call(reward, [GOOD], 1) == pytest.approx([2 / 3])


def test_requests_that_the_teacher_left_unanswered_stop_training_and_are_no_rubrics_fault(plain, tmp_path):
    reward = make_reward(plain, tmp_path / "log")
    reward.teacher.generate = lambda conversations, sampling: [Completion("", 0, 0, False, failure="429")] * 2
    with pytest.raises(RuntimeError, match=r"scripted left 2 of 2 requests of step 3 unanswered \(429\); run again"):
        call(reward, [GOOD, GOOD], 3)
    assert not (tmp_path / "log").exists()


def test_a_pair_that_the_teachers_server_refuses_is_an_invalid_one(plain, tmp_path):
    reward = make_reward(plain, tmp_path / "log")
    refused = Completion("", 0, 0, False, failure="HTTP 400 (content_filter)", refused="request")
    reward.teacher.generate = lambda conversations, sampling: [refused, Completion(write_pair("a"), 5, 9, True)]
    low, high = call(reward, [GOOD, GOOD], 3)
    assert low < high and "request failed: HTTP 400 (content_filter)" in (tmp_path / "log").read_text()


def test_rewards_for_comparison_read_what_their_names_say(lab_config, tmp_path):
    found = {}
    for kind in ("published", "random", "shuffled", "set_influence"):
        config = lab_config({"rl": {"reward": kind, "invalid_penalty": 0.25}})
        reward = make_reward(config, tmp_path / kind, [write_pair("a"), write_pair("b"), write_pair("c")] * 2)
        found[kind] = call(reward, [GOOD, GOOD, "no rubric", GOOD], 0), call(reward, [GOOD, GOOD, "no rubric", GOOD], 1)
    assert found["published"][0] == pytest.approx([0.6, 0.4, 0.0, 1.0])  # of 0.3, 0.2, invalid: 0, and 0.5
    for kind in ("random", "shuffled"):
        assert {rewards[2] for rewards in found[kind]} == {-0.25}
    for shuffled, default in zip(found["shuffled"], found["set_influence"], strict=True):
        assert sorted(shuffled) == pytest.approx(sorted(default))
    assert found["shuffled"] != found["set_influence"]
    assert found["random"][0] != found["random"][1] and min(found["random"][0][:2]) >= 0


def test_trajectories_hold_what_led_to_every_reward(plain, tmp_path):
    reward = make_reward(plain, tmp_path / "log", [write_pair("d"), "no pair"])
    rewards = call(reward, [GOOD, "no rubric", GOOD], 4)
    rows = read_log(tmp_path / "log")
    assert [row["reward"] for row in rows] == rewards
    assert [row["document_id"] for row in rows] == [DOCUMENTS[0].id, DOCUMENTS[1].id, DOCUMENTS[0].id]
    assert {row["step"] for row in rows} == {4}
    good, invalid, no_pair = rows
    assert (good["rubric"], good["problem"]) == ("ask a short answer question", "")
    (pair,) = good["pairs"]
    used = {"prompt_tokens": 5, "completion_tokens": 9}
    influence = [0.123457, -0.3, 0.1, 0.0]
    assert pair == {"question": "what is d ?", "answer": "d", "problem": "", "influence": influence} | used
    assert (invalid["rubric"], invalid["problem"], invalid["pairs"]) == ("no rubric", "no JSON object", [])
    assert no_pair["pairs"] == [{"question": "", "answer": "", "problem": "no JSON object", "raw": "no pair"} | used]


def test_steps_and_seeds_draw_differently_from_the_teacher(plain, tmp_path):
    seeds = []
    for seed in (0, 1):
        reward = make_reward(plain, tmp_path / "log", [write_pair("a")] * 2, seed)
        for step in (0, 1):
            call(reward, [GOOD], step)
        seeds += reward.teacher.seeds
    assert len(set(seeds)) == 4


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 2, "docu', b'{"step": 2, "pairs": [{"answer": "a"}', b'{"rubric": "\xc3']
)
def test_rewinding_restores_exactly_what_was_served_before_a_step(lab_config, tmp_path, step, torn):
    config = lab_config({"rl": {"reward": "set_influence", "pairs_per_rubric": 3}})
    answers = ["d", "c", "d", "a", "b", "c", "d", "d", "b"] * 3
    texts = [write_pair(answer) for answer in answers]
    texts[4] = "no pair"
    reward = make_reward(config, tmp_path / "log", texts)
    served = [reward.served]
    for number in range(3):
        call(reward, [GOOD, "no rubric", GOOD] if number != 1 else ["no rubric"] * 3, number)
        served.append(reward.served)
    rows = read_log(tmp_path / "log")
    with (tmp_path / "log").open("ab") as file:
        file.write(torn)  # killed while writing
    again = make_reward(config, tmp_path / "log")
    again.rewind(step)
    if step == 0:
        assert again.served.served_k is None
    else:
        assert torch.equal(again.served.served_k, served[step].served_k)
    assert read_log(tmp_path / "log") == [row for row in rows if row["step"] < step]


def test_rewinding_without_a_log_starts_anew(set_level, tmp_path):
    reward = make_reward(set_level, tmp_path / "log")
    reward.served = reward.served.update(torch.ones(1, 2), torch.tensor([True]))
    reward.rewind(0)
    assert reward.served.served_k is None and not (tmp_path / "log").exists()


def test_steps_without_a_valid_pair_end_the_run_with_the_commonest_reasons(plain, tmp_path):
    reward = make_reward(plain, tmp_path / "log.jsonl", [write_pair("a"), "no pair"])
    call(reward, ["no rubric"] * 4, 0)
    call(reward, [GOOD], 1)  # one valid pair: the count begins anew
    call(reward, ["no rubric"] * 3 + [GOOD], 2)
    call(reward, ["no rubric"] * 4, 3)
    with pytest.raises(RunStopped, match=r"3 steps in a row gave no valid pair.*: 4 x .*trajectories.jsonl"):
        call(reward, ["no rubric"] * 4, 4)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")][-1] == 4  # what they wrote is kept
