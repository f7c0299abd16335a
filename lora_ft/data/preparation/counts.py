"""What a step of the preparation did, counted: for the log, and for the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepCount:
    """What one step did.

    Attributes:
        step: Its word in the recipe.
        did: What it did to the rows: `changed`, `left out`, `split off`, `drew`, `kept`.
        rows: Split (or source file) -> to how many rows it did.
        of: The same splits (or files) -> how many rows there were.
        note: What else a user should know; empty: nothing.
    """

    step: str
    did: str
    rows: Mapping[str, int]
    of: Mapping[str, int]
    note: str = ""

    def line(self) -> str:
        """One line for the log."""
        told = ", ".join(f"{count} of {self.of[name]} {name} rows" for name, count in self.rows.items())
        return f"preparation: {self.step} {self.did} {told}" + (f"; {self.note}" if self.note else "")

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        note = {"note": self.note} if self.note else {}
        return {"step": self.step, "did": self.did, "rows": dict(self.rows), "of": dict(self.of), **note}
