"""The exception tree: every error a user can meet, with the exit code that the command line gives it.

LoraFtError                 exit 1   anything that lora_ft itself reports
├── InputError              exit 2   what the user gave is wrong; nothing was written
│   ├── RecipeError                  one or more faults in a recipe, each with file:line
│   ├── DataError                    a file, a column, a split or a label of the data
│   ├── ModelError                   a base that cannot be found, read or used for the task
│   └── AdapterError                 an adapter folder that cannot be read or written
│       └── AdapterRefused           an adapter that is damaged or belongs to another base
└── RunError                exit 1   a run that could not go on
    ├── GateError                    a gate stopped a run that would have gone wrong silently
    └── Interrupted         exit 130 a signal ended the run in order (143: one that was not Ctrl-C)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LoraFtError(Exception):
    """Base of all errors of lora_ft; its text is the whole message for the user.

    Attributes:
        told_by: The process of a run that has said the same already; None: nobody.
    """

    exit_code = 1
    told_by: int | None = None


class InputError(LoraFtError):
    """What the user gave is wrong; says where, what was given, what was expected and what to do."""

    exit_code = 2


class RecipeError(InputError):
    """All faults of one recipe in one report.

    Args:
        faults: One line each, `file:line: key = value: what is wrong. What to do`.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(InputError):
    """A file, a column, a split or a label of the data is missing or unusable."""


class ModelError(InputError):
    """A base model cannot be found, read, or used for the task."""


class AdapterError(InputError):
    """An adapter folder cannot be read or must not be written."""


class AdapterRefused(AdapterError):
    """An adapter is damaged, incomplete, or does not belong to the base it is loaded on."""


class RunError(LoraFtError):
    """A run that started could not go on."""


class GateError(RunError):
    """A gate stopped a run that would have ended silently wrong.

    Args:
        told: What is wrong and what to do.
        gate: The name by which the recipe's `checks` turn it off; None where nothing does.
    """

    def __init__(self, told: str, *, gate: str | None = None) -> None:
        self.gate = gate
        super().__init__(told if gate is None else f"{told} (gate {gate}; checks: {{{gate}: false}} turns it off)")


class Interrupted(RunError):
    """A signal ended a run in order: nothing is lost, and it can go on.

    Args:
        told: What ended it, where it stood, and how to go on.
        exit_code: 130 for Ctrl-C, 143 for the other signals.
    """

    exit_code = 130

    def __init__(self, told: str, *, exit_code: int = 130) -> None:
        super().__init__(told)
        self.exit_code = exit_code


def closest(name: str, known: Iterable[str]) -> str:
    """Suggests the nearest known name for a misspelt one.

    Args:
        name: What the user wrote.
        known: The names that would have been right.

    Returns:
        ` Did you mean 'lora_alpha'?` with a leading space, or an empty string if nothing is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
