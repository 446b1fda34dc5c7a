"""A cell of the matrix: a field of the lab, a target and a teacher, under the default profile's settings."""

from dataclasses import dataclass
from pathlib import Path

from rubric_influence.config import Config, load_config
from rubric_influence.lab.world import load_field

PROFILE = Path("params.yaml")
LAB = Path("data/lab")


@dataclass(frozen=True)
class Cell:
    field: str
    target: str  # the architecture of the target's base; rubric generator and teacher are Qwen3's
    teacher: str = "base"

    def __str__(self) -> str:
        return f"{self.field}/{self.target}"


def parse_cell(text: str) -> Cell:
    """The cell "FIELD/TARGET". Raises ValueError where there is no such field, or no base to start from."""
    field, _, target = text.partition("/")
    known = sorted(path.stem for path in (LAB / "fields").glob("*.yaml"))
    if field not in known or target not in ("qwen3", "llama"):
        raise ValueError(f"cell {text!r} is not FIELD/TARGET with one of the fields {known} and target qwen3 or llama")
    for family in ("qwen3", target):
        if not (base := LAB / f"models/{field}-{family}").is_dir():
            raise ValueError(
                f"cell {text!r} needs {base}, which is not there; make it: python -m rubric_influence.lab.pretraining "
                f"--field {LAB / 'fields' / field}.yaml --family {family} --out {base}"
            )
    return Cell(field, target)


def configure(cell: Cell, changes: dict | None = None) -> Config:
    """The default profile for a cell: its field, its models and the two fixed rubrics of its field; nothing tuned."""
    field = load_field(LAB / f"fields/{cell.field}.yaml")
    plain = {"dtype": "float32", "attention": "eager"}
    writer = {"path": str(LAB / f"models/{cell.field}-qwen3"), **plain}

    def ask_for(question_type: str) -> list[str]:
        register = field.registers.technical
        return [
            f"ask a {question_type} question about the {topic} in {register} language with a concise answer ."
            for topic in field.exam_topics
        ]

    profile = load_config(PROFILE).model_dump()
    profile["corpus"]["field"] = str(LAB / f"fields/{cell.field}.yaml")
    target = {"path": str(LAB / f"models/{cell.field}-{cell.target}"), **plain}
    profile["models"] = {"rubric_generator": writer, "teacher": writer, "target": target}
    profile["prompts"] |= {
        "expert_rubrics": ask_for("multiple choice"),
        "privileged_rubrics": ask_for("short answer"),
    }
    for section, values in (changes or {}).items():
        profile[section] = profile[section] | values if isinstance(values, dict) else values
    return Config.model_validate(profile)
