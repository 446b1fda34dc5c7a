"""The shape of the requests that a server takes: which parameters are sent, under which names, and whether as a stream.

Servers refuse parameters that others want. What can be left out or renamed without another answer being drawn is, as
soon as the server's refusal names it; for what would draw another answer, `advise` says what to put into the profile.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rubric_influence.core.model_sections import Endpoint

NEUTRAL = {"top_p": 1.0, "temperature": 1.0}  # values that leave a model's distribution as it is
RENAMED = {"max_tokens": "max_completion_tokens"}  # what servers ask for in their refusals
UNSEEDED = "answers that are kept stay as they are, but a run from scratch would get other ones"


@dataclass(frozen=True)
class Shape:
    omit: frozenset[str]
    rename: Mapping[str, str]
    stream: bool

    def write(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as it is sent."""
        sent = {self.rename.get(name, name): value for name, value in body.items() if name not in self.omit}
        if self.stream:
            sent["stream"] = True
            if "stream_options" not in self.omit:
                sent["stream_options"] = {"include_usage": True}
        return sent


def open_shape(endpoint: Endpoint) -> Shape:
    """The shape that a profile asks for."""
    return Shape(frozenset(endpoint.omit), dict(endpoint.rename.items()), endpoint.stream)


def identify_body(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """What of a body shapes the answer: all but what the profile leaves out, and this too where it changes nothing.

    The seed stays, since it tells the draws of one conversation apart. So neither what a server is found to refuse
    nor a line in the profile that says so makes an answer be asked for again.
    """
    kept = {"seed": body["seed"], **NEUTRAL}
    return {name: value for name, value in body.items() if name not in endpoint.omit or kept.get(name) == value}


def adapt(shape: Shape, unwanted: Collection[str], words: str, body: Mapping[str, Any]) -> tuple[Shape, str] | None:
    """A shape without one of the parameters that a server refuses in `words`, and a note on it.

    None where the answer would be another one without it.
    """
    names = {shape.rename.get(name, name): name for name in body}
    if "stream" in unwanted and not shape.stream:
        return replace(shape, stream=True), "answers are streamed, since the server gives no others"
    for name, other in RENAMED.items():
        if names.get(name) == name and name in unwanted and other in words:
            return replace(shape, rename={**shape.rename, name: other}), f"{name} is sent as {other}"
    if "stream_options" in unwanted:
        note = "stream_options is not sent; tokens are estimated where the server does not count them"
        return replace(shape, omit=shape.omit | {"stream_options"}), note
    for sent in ("seed", "top_p", "temperature"):
        name = next((own for refused, own in names.items() if own == sent and refused in unwanted), "")
        if name == "seed" or (name and NEUTRAL[name] == body[name]):
            why = UNSEEDED if name == "seed" else f"it is {body[name]:g}, which changes nothing"
            return replace(shape, omit=shape.omit | {name}), f"{name} is not sent; {why}"
    return None


def advise(unwanted: Collection[str]) -> str:
    """What to change in the profile where a server refuses these parameters and each of them shapes the answers."""
    for name in ("top_p", "temperature"):
        if name in unwanted:
            return f"To leave {name} to the server, put `omit: [{name}]` into its endpoint section of the profile"
    if "response_format" in unwanted:
        return "Set synthesis.constrained: false: the server does not take a schema"
    return "Set the endpoint's `omit` or `rename` in the profile to what the server takes"


def describe_omissions(shape: Shape, body: Mapping[str, Any]) -> list[str]:
    """What the profile leaves out to the answers' cost."""
    notes = [f"seed is not sent; {UNSEEDED}"] if "seed" in shape.omit else []
    changed = [name for name, value in NEUTRAL.items() if name in shape.omit and body[name] != value]
    return notes + [f"{name} ({body[name]:g}) is not sent; the server's own holds" for name in changed]
