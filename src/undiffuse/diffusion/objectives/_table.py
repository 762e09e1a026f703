"""The table of objectives."""

from __future__ import annotations

from undiffuse.base.table import Table

OBJECTIVES = Table("objective")
