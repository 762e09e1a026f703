"""What the schemas of our files share: types, and what JSON lacks."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=65_535)]
"""A side of an image in pixels, or its number of colours."""


class Strict(BaseModel):
    """A part of a file. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid")


def finite(content: Any) -> Any:
    """The content with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
