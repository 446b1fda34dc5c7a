"""Text engines: conversations in, completions out. This is what all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from rubric_influence.core.config import ModelSpec
from rubric_influence.core.fingerprints import hash_adapter
from rubric_influence.models.chat import Conversation

MAX_OUTPUT_CHARACTERS = 100_000  # of a completion; what follows is not read


@dataclass(frozen=True)
class Completion:
    """What a model wrote, without special tokens; the token counts are what was paid for (the end token included)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool  # the model ended by itself; False where max_tokens cut it, or made a constrained one close
    failure: str = ""  # why there is no text although it was asked for, several times where that could help


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    seed: of the whole call. temperature: 0 is greedy. top_p: 1 leaves nothing out. max_tokens: of a completion.
    schema: a model of text fields only; decoding is restricted to its JSON. None: it is free.
    """

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    schema: type[BaseModel] | None = None


class Engine(Protocol):
    name: str  # what records say wrote them
    independent: bool  # every answer depends on its own request alone, and the engine keeps it as it arrives

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in their order; the same for the same call on the same machine.

        Raises ValueError for a prompt that leaves no room for sampling.max_tokens.
        """
        ...


def name_model(spec: ModelSpec) -> str:
    """What records say wrote them, and their keys: an adapter by what it holds, which training changes."""
    name = f"{spec.path}@{spec.revision}" if spec.revision else spec.path
    return f"{name}+{spec.adapter}@{hash_adapter(spec.adapter)[:12]}" if spec.adapter else name
