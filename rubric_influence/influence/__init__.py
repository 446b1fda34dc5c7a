"""How much the Adam step that a question-answer pair would cause lowers a model's loss on others.

    target = load_target("Qwen/Qwen3-0.6B", "out/checkpoint-12")  # a base model and a LoRA checkpoint of a Trainer
    scorer = PairScorer(target, validation_pairs, by=topics)  # what the model should become better at
    table = rank_pairs(scorer, candidate_pairs)  # the candidates, best first

docs/influence.md teaches these names and what they rest on: scorers (the estimators), directions and gradients (of
the validation set, of samples), tokens (what each contributed), moments, layers, checks (what scores are held to),
score_corpus (files of samples).
"""

from rubric_influence.influence.api import PairScorer, Target, explain_pair, load_target, rank_pairs
from rubric_influence.influence.checkpoints import load_trainer_moments
from rubric_influence.influence.moments import AdamMoments, capture_moments, save_moments

__all__ = ["PairScorer", "Target", "explain_pair", "load_target", "rank_pairs"]
__all__ += ["AdamMoments", "capture_moments", "load_trainer_moments", "save_moments"]  # for a Target made by hand
