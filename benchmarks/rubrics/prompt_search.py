"""GEPA's search for fixed rubrics, dealt to all documents, in place of a trained generator.

GEPA (Agrawal et al. 2025, arXiv 2507.19457) from its own package. A candidate is as many rubrics as the field's experts
wrote, dealt to the documents in turn, as theirs are. Its score on a document is the influence of the pair that the
teacher writes from the document and its rubric; an invalid pair scores 0. GEPA keeps a Pareto front over documents,
changes one rubric of a candidate at a time, and keeps a change that does better on a minibatch. Every score is a
teacher call; GEPA stops at as many as GRPO makes.

What GEPA cannot have in the lab is reflection: that takes a model which reads instructions and feedback, and the lab's
are of a million parameters and read neither. A changed rubric is a draw of the untrained rubric generator for a
document of the minibatch. So this arm is GEPA's selection with blind proposals, and says nothing of its reflection.

The package is one of requirements/peers.txt: `make setup-peers`, then run .venv-peers/bin/python.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rubric_influence.core.config import Config
from rubric_influence.core.journal import Journal
from rubric_influence.core.records import Document, Rubric
from rubric_influence.core.seeds import seed_step
from rubric_influence.engines.base import Engine
from rubric_influence.rl.rubric_reward import Score
from rubric_influence.synthesis.writing import PairTask, SynthesisContext, write_pairs, write_rubrics

MINIBATCH = 8  # documents; every rubric of a candidate is used on at least one
FIRST_PROPOSAL = 500_009  # proposals draw from steps that no call reaches
PACKAGE_NEEDED = "the arm gepa needs GEPA's package: make setup-peers, then run with .venv-peers/bin/python"


class SilentLogger:
    def log(self, message: str) -> None:
        pass


class RubricSearch:
    """GEPA's adapter (gepa.core.adapter.GEPAAdapter); also counts the teacher's calls.

    A data instance is a document's place: it decides which of a candidate's rubrics is the document's.
    """

    def __init__(
        self,
        config: Config,
        documents: Sequence[Document],
        generator: Engine,
        teacher: Engine,
        score: Score,
        seed: int,
        journal: Journal,
    ):
        self.documents, self.seed = documents, seed
        self.generator, self.teacher, self.score = generator, teacher, score
        # An invalid text is not asked for again: it would be a call beyond the budget.
        settings = config.synthesis.model_copy(update={"attempts": 1})
        self.context = SynthesisContext(config.prompts, settings, seed, journal)
        self.calls = self.proposals = 0

    def evaluate(self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False):
        from gepa.core.adapter import EvaluationBatch

        texts = list(candidate.values())
        tasks = []
        for place in batch:
            document = self.documents[place]
            rubric = Rubric(texts[place % len(texts)], document.id, "gepa", self.seed, place)
            tasks.append(PairTask(document, rubric, place))
        pairs = write_pairs(self.teacher, tasks, replace(self.context, seed=seed_step(self.seed, self.calls)))
        self.calls += len(tasks)
        valid = [place for place, pair in enumerate(pairs) if not pair.problem]
        scores = [0.0] * len(pairs)
        if valid:
            found = self.score([pairs[place] for place in valid])
            for place, influence in zip(valid, found.whole_n.tolist(), strict=True):
                scores[place] = influence
        traces = [{"place": place} for place in batch] if capture_traces else None
        return EvaluationBatch(outputs=[pair.question for pair in pairs], scores=scores, trajectories=traces)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {name: eval_batch.trajectories for name in components_to_update}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        found = {}
        for name in components_to_update:
            found[name] = self.draw_rubric(self.documents[reflective_dataset[name][0]["place"]]) or candidate[name]
        return found

    def draw_rubric(self, document: Document) -> str:
        """A new rubric of the untrained generator for a document; "" where it wrote none that can be used."""
        context = replace(self.context, seed=seed_step(self.seed, FIRST_PROPOSAL + self.proposals))
        self.proposals += 1
        return write_rubrics(self.generator, [document], 1, context)[0].text


def search_rubrics(search: RubricSearch, count: int, calls: int) -> list[str]:
    """The `count` rubrics of the candidate with the highest mean influence over all documents, after `calls` calls.

    GEPA ends with the iteration that reaches `calls`, which may go over them by one evaluation of all documents.
    Raises ModuleNotFoundError where GEPA is not installed.
    """
    try:
        import gepa
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(PACKAGE_NEEDED) from error

    places = list(range(len(search.documents)))
    start = {f"rubric {number}": "" for number in range(count)}
    for number, name in enumerate(start):
        while not start[name]:
            start[name] = search.draw_rubric(search.documents[number % len(places)])
    result = gepa.optimize(
        seed_candidate=start,
        trainset=places,
        valset=places,
        adapter=search,
        reflection_minibatch_size=min(MINIBATCH, len(places)),
        skip_perfect_score=False,  # influence has no perfect score
        max_metric_calls=calls,
        logger=SilentLogger(),
        seed=search.seed,
    )
    return list(result.best_candidate.values())
