"""Texts that say nothing, or were damaged on their way: nothing in them, encodings, markup, characters nobody sees.

One row: "The cafÃ© was closed.<br/>Back tomorrow." has mojibake and left-over HTML.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass

import ftfy
import numpy as np

from lora_ft.data.doctor.findings import Finding, Severity, by_share
from lora_ft.data.doctor.stream import Batch

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile(r"[\u200b\u200e\u200f\u2060\ufeff\u00ad\u202a-\u202e\u2066-\u2069]")
TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|li|ul|ol|td|tr|th|table|h[1-6]|hr|img|script|style|em|strong|font|pre|code|body|html)"
    r"\b[^<>]{0,300}>",
    re.IGNORECASE,
)
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});")
ESCAPED = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[nrt](?![a-z])|n(?=[A-Z\\]))|\\n\S")
LINK = re.compile(r"(?:https?://|www\.)\S+")
PLACEHOLDERS = frozenset(
    (
        "n/a", "na", "nan", "null", "none", "nil", "-", "--", "---", "?", "??", "???", ".", "..", "...", "…", "#n/a",
        "#ref!", "#value!", "#name?", "tbd", "todo", "xxx", "undefined", "unknown", "[deleted]", "[removed]", "(null)",
        "<na>", "<null>", "(empty)", "(blank)", "no text", "no comment",
        "not available", "lorem ipsum", "[object object]",
    )
)  # fmt: skip
LONGEST_PLACEHOLDER = max(map(len, PLACEHOLDERS))
LEAST_REPEATED = 10
LEAST_WORDS = 6


@dataclass(frozen=True)
class TextFault:
    """Something that can be seen of one text alone.

    Attributes:
        name: The finding's.
        told: What such rows have, after "42 rows: ".
        remedy: What to do.
        seen: Whether a text has it.
        severity: Of the finding; None: a warning, or a note where hardly any row has it.
        quick: Whether it is quick enough to be asked before every training.
    """

    name: str
    told: str
    remedy: str
    seen: Callable[[str], bool]
    severity: Severity | None = None
    quick: bool = True


def is_placeholder(text: str) -> bool:
    """Whether a text stands for a missing one: N/A, null, [deleted]."""
    return len(text) <= LONGEST_PLACEHOLDER + 8 and text.strip().casefold() in PLACEHOLDERS


def is_repetitive(text: str) -> bool:
    """Whether a text is one character or word over and over: "aaaaaaaaaa", "spam spam spam spam spam spam"."""
    head = text[:200]
    if len(set(head)) <= 3 and len(head) >= LEAST_REPEATED:
        return len(set("".join(text.split()))) <= 2
    words = head.split()
    return len(words) >= LEAST_WORDS and len(set(words)) <= len(words) // LEAST_WORDS


def has_no_letters(text: str) -> bool:
    """Whether a text that is no placeholder has no letter: numbers, signs, emoji alone."""
    return bool(text.strip()) and not any(map(str.isalpha, text)) and not is_placeholder(text)


def is_only_links(text: str) -> bool:
    """Whether a text is addresses of the web and nothing else."""
    return ("://" in text or "www." in text) and not any(map(str.isalpha, LINK.sub("", text)))


def is_mojibake(text: str) -> bool:
    """Whether UTF-8 was read as another encoding, so that ftfy knows what the text was: cafÃ© for café."""
    return not text.isascii() and bool(ftfy.badness.is_bad(text)) and ftfy.fix_encoding(text) != text


def has_html(text: str) -> bool:
    """Whether tags or entities of HTML are left in a text."""
    return ("<" in text and TAG.search(text) is not None) or ("&" in text and ENTITY.search(text) is not None)


def has_invisible(text: str) -> bool:
    """Whether a text has characters of no width, or marks that turn the direction of writing."""
    return not text.isascii() and INVISIBLE.search(text) is not None


FAULTS = (
    TextFault(
        "empty-texts", "have an empty text",
        "Take them out, or check `dataset.columns`: the text may be in another column",
        lambda text: not text.strip(), severity="warning",
    ),
    TextFault(
        "placeholder-texts", "have a word for a missing text (N/A, null, [deleted])",
        "Take them out: the model would learn a label for a text that is not there", is_placeholder,
    ),
    TextFault(
        "texts-without-letters", "have no letter: only numbers, signs or emoji",
        "Look at some of them; take them out if they say nothing of the label", has_no_letters, severity="note",
    ),
    TextFault(
        "only-links", "have nothing but links", "Take them out, or fetch what is behind them", is_only_links
    ),
    TextFault(
        "repetitive-texts", "repeat one character or word over and over", "Take them out: they say nothing",
        is_repetitive,
    ),
    TextFault(
        "replacement-characters", "have U+FFFD, which stands for a character that was lost",
        "Read the source again in its own encoding and write it as UTF-8: what was lost cannot be mended here",
        lambda text: "\ufffd" in text,
    ),
    TextFault(
        "mojibake", "were read in a wrong encoding somewhere (cafÃ© for café)",
        "Write `preparation.fix_encoding: true`, or the source as UTF-8 again", is_mojibake, quick=False,
    ),
    TextFault(
        "control-characters", "have control characters",
        "Take the characters out; where there are many, the file was made in another encoding or is not text",
        lambda text: CONTROL.search(text) is not None,
    ),
    TextFault(
        "invisible-characters", "have characters that nobody sees (no width, soft hyphens, marks of direction)",
        "Take the characters out: they part words into tokens that the base has not seen", has_invisible,
    ),
    TextFault(
        "left-over-html", "have tags or entities of HTML",
        "Write `preparation.strip_html: true`: tags go, entities are decoded",
        has_html,
    ),
    TextFault(
        "escaped-characters", r"have escapes that were never decoded (\n, \u00e9)",
        "Decode them where the file is made: the text was escaped twice",
        lambda text: "\\" in text and ESCAPED.search(text) is not None,
    ),
)  # fmt: skip
"""Everything that is asked of each text alone."""


class TextCheck:
    """Asks every text for every fault.

    Args:
        quick: Only what takes microseconds.
        without: Names of faults that are not asked for.
    """

    def __init__(self, *, quick: bool = False, without: Collection[str] = ()) -> None:
        self.faults = [fault for fault in FAULTS if (fault.quick or not quick) and fault.name not in without]
        self.rows: dict[tuple[str, str], array[int]] = {}
        self.looked: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`; a row is counted once, whichever of its texts has the fault."""
        self.looked[batch.split] = self.looked.get(batch.split, 0) + len(batch.inputs)
        for fault in self.faults:
            seen = fault.seen
            found = {at for texts in batch.texts.values() for at, text in enumerate(texts) if seen(text)}
            if found:
                self.rows.setdefault((fault.name, batch.split), array("q")).extend(
                    batch.start + at for at in sorted(found)
                )

    def findings(self) -> list[Finding]:
        """See `Check`."""
        found = []
        for fault in self.faults:
            for split, of in self.looked.items():
                rows = np.array(self.rows.get((fault.name, split), ()), dtype=np.int64)
                if len(rows):
                    severity = fault.severity or by_share(len(rows), of)
                    found.append(
                        Finding(fault.name, severity, split, len(rows), of, fault.told, fault.remedy, rows=rows)
                    )
        return found
