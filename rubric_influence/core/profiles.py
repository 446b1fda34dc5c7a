"""Profiles: YAML files of parameters, read, merged and checked against core.config."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rubric_influence.core.config import Config
from rubric_influence.core.section import Section


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested `changes` laid over it."""
    nested = [key for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)]
    return base | changes | {key: merge(base[key], changes[key]) for key in nested}


def load_config(path: str | Path = "params.yaml", changes: dict[str, Any] | None = None) -> Config:
    """The profile, checked, with nested `changes` laid over it. Raises ValueError with one line for each wrong key."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no profile at {path}; give a YAML file such as params.yaml or one of conf/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2001-99-99
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not a mapping of sections")
    try:
        return Config.model_validate(merge(values, changes or {}))
    except ValidationError as error:
        raise ValueError("\n".join([f"{path} is not a valid profile:", *map(describe_error, error.errors())])) from None


def describe_error(error: Mapping[str, Any]) -> str:
    """An indented line about one of pydantic's errors: where the parameter is, what is wrong with it and what it is."""
    where = ".".join(str(part) for part in error["loc"]) or "profile"
    found = error["input"]
    if error["type"] == "extra_forbidden" and re.search("key|token|secret|password", where, re.IGNORECASE):
        return f"  {where}: unknown parameter; a key belongs in the environment, see api_key_env"  # its value unsaid
    if error["type"] == "extra_forbidden":
        known = list_parameters(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
        return f"  {where}: unknown parameter (value {found!r}); {hint}"
    if error["type"] == "missing":
        return f"  {where}: missing; add it to the profile"
    if error["type"] == "value_error":  # our own checks, which state what they found
        return f"  {where}: {error['ctx']['error']}"
    hint = " (YAML reads 1e-5 as text: write 1.0e-5)" if isinstance(found, str) and "float" in error["type"] else ""
    return f"  {where}: {error['msg']}; found {found!r}{hint}"


def list_parameters(place: Sequence[str | int]) -> list[str]:
    """The parameters of the section at a place of the profile, as pydantic names places; of a choice's one section."""
    sections: list[type[Section]] = [Config]
    for part in place:
        found = [part_of for section in sections if (part_of := section.model_fields.get(str(part)))]
        if found:
            sections = [inner for field in found for inner in find_sections(field.annotation)]
        else:  # the tag of one of the sections
            kinds = [(s, get_args(s.model_fields["kind"].annotation)) for s in sections if "kind" in s.model_fields]
            sections = [section for section, tags in kinds if part in tags] or sections
    return [name for section in sections for name in section.model_fields]


def find_sections(annotation: object) -> list[type[Section]]:
    """The sections that a parameter may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in find_sections(part)]
