"""Conversations in a model's chat template: the one place where questions and answers become tokens."""

from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]  # messages with role and content
TEMPLATE_OPTIONS = {"enable_thinking": False}


def ask(content: str) -> Conversation:
    """A conversation of one user turn."""
    return [{"role": "user", "content": content}]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, conversations: list[Conversation]) -> list[list[int]]:
    """The tokens of every conversation in the model's chat template, up to where the answer begins."""
    prompts = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS)
        for c in conversations
    ]
    return tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []


def check_room(prompts: list[list[int]], max_tokens: int, room: int | None, name: str) -> None:
    longest = max(map(len, prompts), default=0)
    if room and longest + max_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the {room} positions of {name}; shorten "
            "the documents or lower max_tokens"
        )


def find_ends(tokenizer: PreTrainedTokenizerBase, ends: int | list[int] | None, name: str) -> list[int]:
    """The tokens that end an answer. Raises ValueError where there are none.

    A base model's generation config (`ends`) may name another one than its chat template writes.
    """
    found = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    if not found:
        raise ValueError(f"the tokenizer of {name} has no end token; set tokenizer.eos_token")
    return found


def read_row(tokenizer: PreTrainedTokenizerBase, row: list[int], ends: list[int]) -> tuple[str, int, bool]:
    """The text of generated tokens up to the first end, how many they are with it, and whether there is one."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    written = len(row) if end is None else end + 1
    return tokenizer.decode(row[:end], skip_special_tokens=True), written, end is not None
