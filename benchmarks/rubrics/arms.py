"""What each arm of a cell trains on. All have one pair budget, and the arms of RL one number of teacher calls in RL."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.rubrics.preferences import train_by_preferences
from benchmarks.rubrics.prompt_search import RubricSearch, search_rubrics
from benchmarks.rubrics.signals import SignalScorer, open_signal
from rubric_influence.core.config import Config
from rubric_influence.core.journal import Journal
from rubric_influence.core.paths import TUNED_ARMS
from rubric_influence.core.records import Document, ExamItem, QAPair, Rubric, keep_valid
from rubric_influence.core.scratch import Workplace
from rubric_influence.core.seeds import seed_final_rubrics
from rubric_influence.engines.base import Engine
from rubric_influence.engines.open import open_engine
from rubric_influence.influence.api import Target
from rubric_influence.influence.embeddings import embedding_similarity
from rubric_influence.influence.moments import load_moments
from rubric_influence.models.loading import load_tokenizer
from rubric_influence.pipeline.stages.final import ArmSet, Writers, synthesise_arms
from rubric_influence.pipeline.stages.warmup import choose_pairs
from rubric_influence.rl.choosing import choose_set
from rubric_influence.rl.grpo import train_rubric_generator
from rubric_influence.rl.rewards import measure_unit
from rubric_influence.rl.rubric_reward import Score
from rubric_influence.rl.scoring import TargetScorer
from rubric_influence.synthesis.outcomes import PAIRS, RUBRICS, open_ledger
from rubric_influence.synthesis.writing import (
    SynthesisContext,
    deal_rubrics,
    follow_rubrics,
    write_pairs,
    write_rubrics,
)
from rubric_influence.training.fine_tuning import TuningRun, fine_tune, list_checkpoints, load_fine_tuned

# Arms of RL -> (rl.reward, what scores the pairs that its rubrics lead to).
RL_ARMS = {
    "optimised": ("set_influence", "influence"),
    "paper_reward": ("influence", "cosine"),
    "published_reward": ("published", "cosine"),
    "similarity_reward": ("influence", "similarity"),
    "lexical_reward": ("influence", "lexical"),
    "loss_reward": ("influence", "loss"),
    "likelihood_reward": ("influence", "likelihood"),
    "accuracy_reward": ("influence", "accuracy"),
    "unrolled_reward": ("influence", "unrolled"),
    "shuffled_reward": ("shuffled", "influence"),
    "random_reward": ("random", "influence"),
}
ROUNDS = "two_rounds"  # the optimised arm's RL, with warm-up and moments made anew halfway
# Arms of DPO -> rl.reward, which ranks the rubrics of a group; pairs are scored by influence.
DPO_ARMS = {"dpo": "influence", "dpo_set": "set_influence"}
SELECTED = "similarity_filtered"  # the best half of twice as many initial pairs, by embedding similarity (RDS+)
CHOSEN = "optimised_chosen"  # of twice as many pairs by the optimised generator, the set of the highest utility
SEARCHED = "gepa"  # fixed rubrics that GEPA found
ARMS = (*TUNED_ARMS, SELECTED, CHOSEN, *(arm for arm in RL_ARMS if arm != "optimised"), ROUNDS, *DPO_ARMS, SEARCHED)


class SeedRun:
    """One seed of a cell up to the warmed-up target, and every arm's rubrics and pairs from there.

    All is kept in `folder`; what is there already is not made again.
    """

    def __init__(self, config: Config, documents: list[Document], exam: list[ExamItem], seed: int, folder: Path):
        self.config, self.documents, self.exam, self.seed, self.folder = config, documents, exam, seed, folder
        journal, settings = Journal(folder / "answers.jsonl"), config.synthesis
        ledger = open_ledger(settings)
        self.context = SynthesisContext(config.prompts, settings, seed, journal, ledger)
        asked = ((config.models.teacher, PAIRS), (config.models.rubric_generator, RUBRICS))
        self.teacher, self.untrained = (
            open_engine(spec, settings.batch_size, journal=journal, ledger=ledger, what=what) for spec, what in asked
        )
        self.scorer = self.warm_up(self.untrained, folder / "warmup")

    def warm_up(self, generator: Engine, out: Path) -> TargetScorer:
        """The target warmed up, in `out`, on pairs that a generator's rubrics lead to."""
        config, seed = self.config, self.seed
        if not out.is_dir():
            _, pairs = self.synthesise(generator, config.budget.initial_pairs, seed)
            chosen, warming = choose_pairs(keep_valid(pairs), config.warmup, seed), out.with_name(f"{out.name}.making")
            models, name = config.models, f"warm-up, seed {seed}"
            run = TuningRun(models.target, config.prompts, config.lora, config.warmup, seed, name=name)
            fine_tune(run, chosen, Workplace(warming, self.folder / "scratch/warmup"))
            warming.rename(out)
        return TargetScorer(config, out, self.exam, seed)

    def synthesise(self, generator: Engine, per_document: int, seed: int) -> ArmSet:
        rubrics = write_rubrics(generator, self.documents, per_document, replace(self.context, seed=seed))
        return ArmSet(rubrics, self.write_pairs(rubrics))

    def write_pairs(self, rubrics: list[Rubric]) -> list[QAPair]:
        return write_pairs(self.teacher, follow_rubrics(self.documents, rubrics), self.context)

    def open_trained(self, arm: str) -> Engine:
        """The rubric generator after RL with an arm's reward, or after an arm's DPO, trained if it is not there."""
        if arm == ROUNDS:
            return self.train_in_rounds()
        reward, kind = (DPO_ARMS[arm], "influence") if arm in DPO_ARMS else RL_ARMS[arm]
        train = train_by_preferences if arm in DPO_ARMS else train_rubric_generator
        out = self.folder / "generators" / arm
        if not (out / "trajectories.jsonl").is_file():  # written last
            config = self.config.model_copy(update={"rl": self.config.rl.model_copy(update={"reward": reward})})
            scratch = self.folder / "scratch" / arm
            scratch.mkdir(parents=True, exist_ok=True)
            train(config, self.documents, self.teacher, self.open_score(kind), self.seed, Workplace(out, scratch))
        return self.open_generator(out)

    def open_generator(self, path: Path) -> Engine:
        spec = self.config.models.rubric_generator.model_copy(update={"path": str(path)})
        return open_engine(spec, self.config.synthesis.batch_size)

    def train_in_rounds(self) -> Engine:
        """Half of RL's steps, warm-up and moments anew on that generator's pairs, then the other half from there."""
        halves = (self.config.rl.steps // 2, self.config.rl.steps - self.config.rl.steps // 2)
        spec, scorer = self.config.models.rubric_generator, self.scorer
        for number, steps in enumerate(halves):
            out = self.folder / "generators" / f"{ROUNDS}-{number}"
            if not (out / "trajectories.jsonl").is_file():
                models = self.config.models.model_copy(update={"rubric_generator": spec})
                changes = {"models": models, "rl": self.config.rl.model_copy(update={"steps": steps})}
                scratch = self.folder / "scratch" / out.name
                scratch.mkdir(parents=True, exist_ok=True)
                config, seed = self.config.model_copy(update=changes), self.seed + 104_729 * number
                train_rubric_generator(config, self.documents, self.teacher, scorer, seed, Workplace(out, scratch))
            generator, spec = self.open_generator(out), spec.model_copy(update={"path": str(out)})
            if number == 0:
                scorer = self.warm_up(generator, self.folder / "warmup-1")
        return generator

    def open_score(self, kind: str) -> Score:
        """Influence as the profile has it, the paper's cosine with the mean gradient, or a signal of signals.py."""
        if kind == "influence":
            return self.scorer
        if kind != "cosine":
            signal = open_signal(kind, self.config, self.load_target(), self.list_validation())
            return SignalScorer(self.scorer, signal)
        influence = self.config.influence.model_copy(update={"normalise": True, "directions": "mean"})
        config = self.config.model_copy(update={"influence": influence})
        return TargetScorer(config, self.folder / "warmup", self.exam, self.seed)

    def load_target(self) -> Target:
        """The warmed-up target at its last checkpoint."""
        spec, checkpoint = self.config.models.target, list_checkpoints(self.folder / "warmup")[-1]
        model, moments = load_fine_tuned(spec, checkpoint), load_moments(checkpoint / "moments.safetensors")
        limit = self.config.warmup.max_tokens
        return Target(model, load_tokenizer(spec), moments, self.config.prompts.answer, limit)

    def list_validation(self) -> list[ExamItem]:
        return [item for item in self.exam if item.split == "validation"]

    def make_sets(self, arms: Iterable[str]) -> dict[str, ArmSet]:
        """arm -> its rubrics and valid pairs; the pipeline's own arms are made by the pipeline's own code."""
        arms, made, sets = list(arms), {}, {}
        if any(arm in TUNED_ARMS or arm == SELECTED for arm in arms):
            trained = self.open_trained("optimised") if "optimised" in arms else None
            writers = Writers(self.teacher, self.untrained, trained)
            made = synthesise_arms(self.config, self.documents, writers, self.scorer, self.context)
        for arm in arms:
            if arm == SELECTED:
                rubrics, kept = made["influence_filtered"]
                sets[arm] = ArmSet(rubrics, self.keep_similar(keep_valid(self.write_pairs(rubrics)), len(kept)))
            elif arm in made:
                sets[arm] = made[arm]
            elif arm == CHOSEN:
                sets[arm] = self.choose()
            elif arm == SEARCHED:
                rubrics = deal_rubrics(self.search(), arm, self.documents, self.config.budget.final_pairs)
                sets[arm] = ArmSet(rubrics, self.write_pairs(rubrics))
            else:
                generator = self.open_trained(arm)
                sets[arm] = self.synthesise(generator, self.config.budget.final_pairs, seed_final_rubrics(self.seed))
        return {arm: ArmSet(keep_valid(rubrics), keep_valid(pairs)) for arm, (rubrics, pairs) in sets.items()}

    def choose(self) -> ArmSet:
        """Of twice the pair budget the best set; the units of influence are those of the initial pairs."""
        budget, seed = self.config.budget, seed_final_rubrics(self.seed)
        rubrics, pairs = self.synthesise(self.open_trained("optimised"), 2 * budget.final_pairs, seed)
        _, first = self.synthesise(self.untrained, budget.initial_pairs, self.seed)
        unit_k = measure_unit(self.scorer(keep_valid(first)).rewarded_nk)
        unique = list({(pair.document_id, pair.question): pair for pair in keep_valid(pairs)}.values())
        served, count = replace(self.scorer.served, unit_k=unit_k), len(self.documents) * budget.final_pairs
        rows = choose_set(self.scorer(unique).rewarded_nk, [pair.document_id for pair in unique], served, count)
        kept = [unique[row] for row in rows]
        asked = {pair.rubric_id for pair in kept}
        return ArmSet([rubric for rubric in rubrics if rubric.id in asked], kept)

    def search(self) -> list[str]:
        """The rubrics that GEPA finds with as many teacher calls as RL makes. What was answered is kept."""
        rl, count = self.config.rl, len(self.config.prompts.expert_rubrics)
        calls = rl.steps * rl.documents_per_step * rl.group_size * rl.pairs_per_rubric
        models, kept = (self.untrained, self.teacher, self.scorer), Journal(self.folder / "gepa.jsonl")
        return search_rubrics(RubricSearch(self.config, self.documents, *models, self.seed, kept), count, calls)

    def keep_similar(self, pairs: list[QAPair], count: int) -> list[QAPair]:
        """The `count` pairs nearest to the validation questions, in their order."""
        target, tokens = self.load_target(), self.config.influence.batch_tokens
        examples, validation = target.encode(pairs), target.encode(self.list_validation())
        near = embedding_similarity(target.model, examples, validation, tokens)
        return [pairs[place] for place in sorted(near.argsort(descending=True, stable=True)[:count].tolist())]
