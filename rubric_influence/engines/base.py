"""What all text engines share: conversations in, completions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel

from rubric_influence.core.fingerprints import hash_adapter
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.models.chat import Conversation

MAX_OUTPUT_CHARACTERS = 100_000  # of a completion; the rest is not read


@dataclass(frozen=True)
class Completion:
    """What a model wrote, without special tokens; the token counts are those paid for (the end token included).

    `refused`: "request" where the server judged what the request holds (it would again, and others may be answered),
    "answer" where it or the model refused to answer this time.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool  # the model ended by itself; False where max_tokens cut it, or made a constrained one close
    failure: str = ""  # why there is no text to use; "" where there is one
    refused: Literal["", "request", "answer"] = ""
    estimated: bool = False  # a token count is an estimate, since the server gave none
    unseeded: bool = False  # drawn without its seed, which the server does not take


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    seed: int  # of the whole call
    max_tokens: int  # of each completion
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # 1 leaves nothing out
    schema: type[BaseModel] | None = None  # of text fields only; decoding is restricted to its JSON; None: free


class Engine(Protocol):
    name: str  # of the author, in records
    independent: bool  # every answer depends on its own request alone, and the engine keeps it as it arrives

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Completion]:
        """One completion for each conversation, in their order; the same for the same call on the same machine.

        Raises ValueError for a prompt that leaves no room for sampling.max_tokens.
        """


def name_model(spec: ModelSpec) -> str:
    """The model's name in records and keys; an adapter's holds a hash, since training changes it in place."""
    name = f"{spec.path}@{spec.revision}" if spec.revision else spec.path
    return f"{name}+{spec.adapter}@{hash_adapter(spec.adapter)[:12]}" if spec.adapter else name
