"""The table and the schema of all parameters are the config's own, and committed profiles keep to them."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft7Validator

from rubric_influence.cli.main import commands
from rubric_influence.core.config import Config
from rubric_influence.core.profiles import load_config, merge
from rubric_influence.core.section import Count, Section
from rubric_influence.pipeline.parameters import (
    describe_default,
    describe_type,
    link_heading,
    make_schema,
    read_meanings,
    tabulate_parameters,
    walk_sections,
)

ROOT = Path(__file__).parents[2]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "conf").glob("*.yaml"))]


class Base(Section):
    said: Count  # what it is
    own: str  # of the base


class Derived(Base):
    own: str = ""  # of the derived: again
    long: list[int] = []  # behind its last line


class Silent(Section):
    said: Count  # what it is
    # A line of its own says nothing about a field.
    unsaid: Count


@pytest.mark.parametrize(
    ("options", "file"), [([], "docs/parameters.md"), (["--schema"], "conf/schema.json")], ids=["page", "schema"]
)
def test_the_committed_file_is_what_the_command_prints(options: list[str], file: str):
    result = CliRunner().invoke(commands, ["parameters", *options])
    assert result.exit_code == 0, result.output
    remake = f"rubric-influence parameters {' '.join(options)} > {file}"
    assert result.output == (ROOT / file).read_text(encoding="utf-8"), f"the config has changed: {remake}"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_committed_profile_is_valid_by_the_schema(path: Path):
    Draft7Validator.check_schema(make_schema())
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in Draft7Validator(make_schema()).iter_errors(profile)] == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profiles_first_line_names_the_schema_where_it_lies_and_as_params_yaml(path: Path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"  # a path from the profile's folder
    for folder in (path.parent, ROOT):
        assert json.loads((folder / "schema.json").read_text(encoding="utf-8")) == make_schema()


@pytest.mark.parametrize(
    "changes",
    [
        {"modles": {}},
        {"rl": {"stepz": 3}},
        {"rl": {"steps": 0}},
        {"rl": {"steps": "40"}},
        {"rl": {"reward": "influenc"}},
        {"rl": {"lora": {"r": 4}}},
        {"gate": {"threshold": 1.5}},
        {"finetuning": {"learning_rate": "4e-3"}},  # as YAML reads 4e-3
        {"finetuning": {"adam_betas": [0.9, 1.5]}},
        {"finetuning": {"adam_betas": [0.9]}},
        {"corpus": {"kind": "text"}},
        {"seeds": []},
        {"quality": {"language": "english"}},
        {"influence": {"momentum": "no"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_config_refuses(changes: dict):
    profile = merge(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), changes)
    assert not Draft7Validator(make_schema()).is_valid(profile)
    with pytest.raises(ValueError, match="not a valid profile"):
        load_config(ROOT / "params.yaml", changes)


def test_every_parameter_of_the_schema_has_its_comment_as_description():
    schema = make_schema()
    assert schema["properties"]["seeds"]["description"] == "one whole run each"
    betas = schema["$defs"]["Warmup"]["properties"]["adam_betas"]  # inherited
    assert betas["description"] == "of Adam's two moments"
    found = {name for section in (schema, *schema["$defs"].values()) for name in section.get("properties", {})}
    assert found == {name for _, section in walk_sections() for name in section.model_fields}


def test_a_meaning_is_the_comment_behind_the_field():
    assert read_meanings(Derived) == {
        "said": "what it is",
        "own": "of the derived: again",
        "long": "behind its last line",
    }


def test_a_parameter_without_a_comment_is_refused():
    with pytest.raises(ValueError, match=r"Silent has \['unsaid'\] without a comment"):
        read_meanings(Silent)


def test_sections_are_walked_in_the_order_of_the_config():
    places = list(dict.fromkeys(place for place, _ in walk_sections()))
    assert places[:5] == ["", "corpus", "corpus.document_columns", "corpus.exam_columns", "models"]
    assert {"models.teacher.endpoint", "warm_start.base", "rl.lora"} < set(places)
    assert [place for place in places if place in Config.model_fields] == [
        n for n in Config.model_fields if n != "seeds"
    ]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer"}, "integer"),
        ({"type": "integer", "minimum": 1}, "integer ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0 and ≤ 1"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}, "`a`, `b` or `null`"),
        ({"const": "lab", "type": "string"}, "`lab`"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "list of text (2 or more)"),
        ({"type": "array", "items": 2 * [{"type": "number"}], "minItems": 2, "maxItems": 2}, "list of number (2)"),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/JsonValue"}}, "mapping of text to anything"),
        ({"type": "string", "pattern": "^a|b$"}, "text like `^a|b$`"),
        ({"$ref": "#/$defs/Lora"}, "[`lora`](#lora)"),
    ],
)
def test_a_type_in_words(schema: dict, words: str):
    assert describe_type(schema, {"Lora": link_heading("`lora`")}) == words


@pytest.mark.parametrize("value", [1.0e-8, "off", "", None, True, [0.9, 0.999], {}, ["text"]])
def test_a_default_is_what_yaml_reads_back(value: object):
    shown = describe_default("x", {"properties": {"x": {"default": value}}})
    assert yaml.safe_load(shown.strip("`")) == value


def test_the_page_has_a_row_for_every_parameter_and_its_links_lead_to_headings():
    page = tabulate_parameters()
    sections = {section for _, section in walk_sections()}
    rows = re.findall(r"^\| `\w+` \|.*\|$", page, re.MULTILINE)
    assert len(rows) == sum(len(section.model_fields) for section in sections)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)  # a pipe within a cell is escaped
    headings = {link_heading(title).partition("(")[2] for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert {f"{link})" for link in re.findall(r"\]\((#[^)]*)\)", page)} <= headings
    assert "| `adam_epsilon` | number > 0 | `1.0e-08` | added to the root of Adam's second moment |" in rows
