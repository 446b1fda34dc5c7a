"""What every section of a profile is: a strict pydantic model, and the numbers that its fields take."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Strict: `1e-5` (which YAML reads as text), `"yes"` for a boolean or a misspelt key are errors, not guesses.

    A section's `model_post_init` raises ValueError for fields that contradict each other; pydantic names the section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
