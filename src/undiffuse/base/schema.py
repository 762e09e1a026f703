"""Types that the schemas of our files share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=65_535)]
"""A side of an image in pixels, or its number of colours."""


class Strict(BaseModel):
    """A part of a file. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid")
