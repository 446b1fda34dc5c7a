"""Every parameter as a table to read (docs/parameters.md) and as a JSON Schema for editors (conf/schema.json).

Both are made of the fields of core.config: their types, bounds and defaults, and the comments that stand behind them in
the source. This module is not in core because every stage depends on that folder.
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from rubric_influence.core.config import Config
from rubric_influence.core.profiles import find_sections
from rubric_influence.core.section import Section

DRAFT = "http://json-schema.org/draft-07/schema#"  # the last one that editors' YAML servers know in full
INTRODUCTION = """# Parameters

Every parameter of a profile, in the order of `rubric_influence/core/config.py`. This page is made by
`rubric-influence parameters > docs/parameters.md`. An editor with a YAML language server completes and checks a profile
as it is written, by `conf/schema.json`, which the first line of every profile names and
`rubric-influence parameters --schema > conf/schema.json` makes. Whether parameters fit each other, the models and the
files is checked by `rubric-influence plan FILE`."""


class ProfileSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema, in draft 7 and without a title at every field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def tuple_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().tuple_schema(schema)
        return {"items" if key == "prefixItems" else key: value for key, value in made.items()}


def walk_sections(section: type[Section] = Config, place: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(place in a profile, section) of a section and all that it may hold, depth first; the profile's place is ""."""
    yield place, section
    for name, field in section.model_fields.items():
        for inner in find_sections(field.annotation):
            yield from walk_sections(inner, f"{place}.{name}".lstrip("."))


def read_meanings(section: type[Section]) -> dict[str, str]:
    """The comment behind each of a section's fields, inherited ones included. Raises ValueError for one without."""
    meanings: dict[str, str] = {}
    for kind in reversed([kind for kind in section.__mro__ if issubclass(kind, Section)]):
        source = inspect.getsource(kind)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        (declared,) = ast.parse(source).body
        assert isinstance(declared, ast.ClassDef)
        for line in declared.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.end_lineno in comments:
                meanings[line.target.id] = comments[line.end_lineno]
    if missing := section.model_fields.keys() - meanings.keys():
        raise ValueError(f"{section.__name__} has {sorted(missing)} without a comment behind; say there what they mean")
    return meanings


def make_schema() -> JsonSchemaValue:
    """The JSON Schema of a profile, with the fields' comments as descriptions.

    It does not hold what a section's model_post_init checks: how fields fit each other.
    """
    schema = {"$schema": DRAFT} | Config.model_json_schema(schema_generator=ProfileSchema)
    for _, section in walk_sections():
        for name, meaning in read_meanings(section).items():
            own = schema if section is Config else schema["$defs"][section.__name__]
            own["properties"][name]["description"] = meaning
    return schema


def describe_type(schema: JsonSchemaValue, links: dict[str, str]) -> str:
    """A field's JSON Schema in words; `links` has the text of a reference by the name of the section."""
    kinds = list_kinds(schema, links)
    return " or ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))


def list_kinds(schema: JsonSchemaValue, links: dict[str, str]) -> list[str]:
    """What a field may hold, one by one."""
    if "$ref" in schema:
        return [links.get(schema["$ref"].rpartition("/")[2], "anything")]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return [kind for choice in choices for kind in list_kinds(choice, links)]
    if "const" in schema or "enum" in schema:
        return [f"`{value}`" for value in schema.get("enum") or [schema["const"]]]
    match schema["type"]:
        case "array":
            items = schema["items"] if isinstance(schema["items"], list) else [schema["items"]]
            inner = " and ".join(dict.fromkeys(describe_type(item, links) for item in items))
            least, most = schema.get("minItems"), schema.get("maxItems")
            size = f" ({least}{'' if least == most else ' or more'})" if least else ""
            return [f"list of {inner}{size}"]
        case "object":
            return [f"mapping of text to {describe_type(schema['additionalProperties'], links)}"]
        case "integer" | "number" as kind:
            signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
            bounds = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
            return [" ".join([kind, " and ".join(bounds)]).strip()]
        case "string":
            return [f"text like `{schema['pattern']}`" if "pattern" in schema else "text"]
        case "boolean":
            return ["`true`", "`false`"]
        case kind:
            return [f"`{kind}`"]  # null


def describe_default(name: str, section: JsonSchemaValue) -> str:
    """A field's default as YAML writes it."""
    if name in section.get("required", []):
        return "required"
    field = section["properties"][name]
    if "$ref" in field:
        return "its defaults"
    return f"`{yaml.safe_dump([field['default']], default_flow_style=True, width=1000).strip()[1:-1]}`"


def title_section(place: str, schema: JsonSchemaValue) -> str:
    """The heading over a section's table: its first place in a profile, with its kind where a place has several."""
    kind = schema["properties"].get("kind", {}).get("const")
    return f"`{place}`" + (f", kind `{kind}`" if kind else "")


def link_heading(title: str) -> str:
    """A link to a heading of the same page, by the rule of GitHub and of Python-Markdown."""
    slug = "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")
    return f"[{title}](#{slug})"


def tabulate_parameters() -> str:
    """docs/parameters.md: a table for each section, below its docstring, in the order of the config."""
    schema = make_schema()
    places: dict[type[Section], list[str]] = {}
    for place, section in walk_sections():
        places.setdefault(section, []).append(place)
    definitions = {section: schema["$defs"].get(section.__name__, schema) for section in places}
    titles = {section: title_section(places[section][0], definitions[section]) for section in places}
    links = {section.__name__: link_heading(title) for section, title in titles.items()}
    parts = [INTRODUCTION]
    for section, definition in definitions.items():
        title = "The sections" if section is Config else titles[section]
        also = ", ".join(f"`{place}`" for place in places[section][1:])
        rows = [
            [f"`{name}`", describe_type(field, links), describe_default(name, definition), field["description"]]
            for name, field in definition["properties"].items()
        ]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        table = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        table += [f"| {' | '.join(row)} |" for row in cells]
        said = inspect.cleandoc(section.__doc__ or "")
        parts += [f"## {title}", said, also and f"Also {also}.", "\n".join(table)]
    return "\n\n".join(filter(None, parts)) + "\n"
