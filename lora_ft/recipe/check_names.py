"""The names of all gates of a run and all findings of the data doctor, which the section `checks` can turn off.

A recipe: `checks: {near-duplicates: false, worst-batch-first: false}`
"""

from __future__ import annotations

from collections.abc import Mapping

GATES: Mapping[str, str] = {
    "world-size": "as many processes as the launcher was asked for",
    "masked-labels": "at least one label of the training rows is supervised",
    "one-label": "training rows that are not all alike",
    "finite-loss": "no loss that is not a number",
    "gradients": "every trainable tensor gets a gradient",
    "moved": "no tensor that began at zero is zero at the end",
}
"""Gate -> what a run must have for it to pass."""

FINDINGS: tuple[str, ...] = (
    "bad-rows",
    "empty-texts",
    "constant-texts",
    "placeholder-texts",
    "texts-without-letters",
    "only-links",
    "repetitive-texts",
    "very-long-texts",
    "very-short-texts",
    "replacement-characters",
    "mojibake",
    "control-characters",
    "invisible-characters",
    "left-over-html",
    "escaped-characters",
    "unexpected-script",
    "mixed-script-words",
    "boilerplate",
    "longer-than-max-length",
    "unknown-tokens",
    "exact-duplicates",
    "near-duplicates",
    "exact-leakage",
    "near-leakage",
    "conflicting-labels",
    "one-class",
    "unbalanced-labels",
    "rare-labels",
    "misspelt-labels",
    "unknown-labels",
    "absent-labels",
    "shifted-labels",
    "label-in-text",
    "probable-label-errors",
    "unreadable-images",
    "tiny-images",
    "blank-images",
    "turned-images",
    "duplicate-images",
    "look-alike-images",
    "duplicate-images-leakage",
    "look-alike-images-leakage",
    "unreadable-sounds",
    "silent-sounds",
    "clipped-sounds",
    "short-sounds",
    "long-sounds",
    "mixed-sample-rates",
)
"""What `lora-ft data check` and the short look before every training may say; docs/data.md explains each."""
