"""Gives an unquoted scalar its type by the core schema of YAML 1.2 (chapter 10.3), to the letter.

`1e-4` is a number, `no` and `on` are text, `0o17` is 15, `017` is 17; `1_000`, `12:30:00` and `2020-01-01`
are text. ruamel.yaml's own resolver reads `1_000` as a number and `2020-01-01` as a date, so only its
parser is used.
"""

from __future__ import annotations

import re

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
FLOAT_TEXT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NOT_A_NUMBER = re.compile(r"\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 300


def plain_scalar(text: str) -> str | int | float | bool | None:
    """Gives an unquoted scalar its type by the core schema of YAML 1.2.

    Args:
        text: The scalar as written.

    Returns:
        None, a bool, a number, or the text itself.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if FLOAT_TEXT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float("nan") if _NOT_A_NUMBER.fullmatch(text) else text
