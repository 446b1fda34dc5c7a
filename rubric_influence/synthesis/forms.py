"""The forms in which trainers read a question with its answer, as columns of a released set.

`pairs` has the texts as they are. In the others the user's turn is the profile's `prompts.answer`, filled as for the
target's own fine-tuning: without control tokens that a document might have brought.
"""

from typing import Any

import pyarrow as pa

from rubric_influence.core.config import Prompts
from rubric_influence.synthesis.prompts import ask_answer

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SHAREGPT_TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
FORMS: dict[str, dict[str, pa.DataType]] = {  # name -> its columns
    "pairs": {"question": pa.string(), "answer": pa.string()},
    "messages": {"messages": TURNS},
    "prompt-completion": {"prompt": TURNS, "completion": TURNS},
    "alpaca": {"instruction": pa.string(), "input": pa.string(), "output": pa.string()},
    "sharegpt": {"conversations": SHAREGPT_TURNS},
}


def shape_pair(form: str, prompts: Prompts, question: str, answer: str) -> dict[str, Any]:
    """The values of the columns of `form`, a name of FORMS."""
    asked, answered = ask_answer(prompts, question), [{"role": "assistant", "content": answer}]
    match form:
        case "pairs":
            return {"question": question, "answer": answer}
        case "messages":
            return {"messages": asked + answered}
        case "prompt-completion":
            return {"prompt": asked, "completion": answered}
        case "alpaca":
            return {"instruction": asked[0]["content"], "input": "", "output": answer}
        case "sharegpt":  # the roles by the names that chat templates know: TRL keeps them, "human" it would not train
            return {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in asked + answered]}
    raise ValueError(f"the form is {form!r}, expected one of {', '.join(FORMS)}")
