"""A cell of the matrix: a field of the lab, a target and a teacher, under the default profile's settings."""

from dataclasses import dataclass
from pathlib import Path

from rubric_influence.core.config import Config
from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.profiles import load_config
from rubric_influence.core.scratch import scratch_folder
from rubric_influence.lab.networks import FAMILIES
from rubric_influence.lab.world import load_field

PROFILE = Path("params.yaml")
LAB = Path("data/lab")


@dataclass(frozen=True)
class Cell:
    field: str
    target: str  # the architecture of the target's base; the rubric generator is always Qwen3's
    teacher: str = "qwen3"  # of the teacher's base; Llama's are trained for longer, from Qwen3's

    def __str__(self) -> str:
        return f"{self.field}/{self.target}" + (f"/{self.teacher}" if self.teacher != Cell.teacher else "")


def parse_cell(text: str) -> Cell:
    """The cell "FIELD/TARGET" or "FIELD/TARGET/TEACHER". Raises ValueError where there is none such, or no base."""
    parts = text.split("/")
    field, target, teacher = [*parts, Cell.teacher][:3] if len(parts) in (2, 3) else ("", "", "")
    known = sorted(path.stem for path in (LAB / "fields").glob("*.yaml"))
    if field not in known or target not in FAMILIES or teacher not in FAMILIES:
        raise ValueError(
            f"cell {text!r} is not FIELD/TARGET or FIELD/TARGET/TEACHER with one of the fields {known}, and target and "
            f"teacher one of {list(FAMILIES)}"
        )
    for family in ("qwen3", target, teacher):
        if not (base := LAB / f"models/{field}-{family}").is_dir():
            raise ValueError(
                f"cell {text!r} needs {base}, which is not there; make it: rubric-influence lab pretrain "
                f"--field {LAB / 'fields' / field}.yaml --family {family} --out {base}"
            )
    return Cell(field, target, teacher)


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
    teacher, target = (
        {"path": str(LAB / f"models/{cell.field}-{family}"), **plain} for family in (cell.teacher, cell.target)
    )
    profile["models"] = {"rubric_generator": writer, "teacher": teacher, "target": target}
    profile["prompts"] |= {"expert_rubrics": ask_for("multiple choice"), "privileged_rubrics": ask_for("short answer")}
    for section, values in (changes or {}).items():
        profile[section] = profile[section] | values if isinstance(values, dict) else values
    return Config.model_validate(profile)


def open_folder(config: Config) -> Path:
    """Where a cell keeps its work, a folder a seed in it, however many seeds are run."""
    models = [fingerprint(spec) for spec in (config.models.rubric_generator, config.models.target)]
    return scratch_folder("rubrics", config.model_dump_json(exclude={"seeds", "machine"}), models)
