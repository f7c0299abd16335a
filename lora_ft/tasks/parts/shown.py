"""Features as a person reads them: what the model gets, and in `[[ ]]` what it learns of it; see `Task.shown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lora_ft.tasks.parts.problem import Problem

IGNORED = -100


def marked(text: str) -> str:
    """What is learned."""
    return f"[[{text}]]"


def tokens_shown(ids: Sequence[int], labels: Sequence[int], problem: Problem) -> str:
    """Tokens of a causal model as text, those that are learned marked; special tokens are to be seen."""
    pieces = []
    numbered = list(enumerate(labels))
    for learned, group in groupby(numbered, key=lambda one: one[1] != IGNORED):
        at = [index for index, _ in group]
        text = decoded(ids[at[0] : at[-1] + 1], problem)
        pieces.append(marked(text) if learned else text)
    return "".join(pieces)


def decoded(ids: Sequence[int], problem: Problem) -> str:
    """Tokens as text, special ones among them."""
    return str(problem.processor.decode(list(ids), skip_special_tokens=False))


def target_shown(target: Any, problem: Problem) -> str:
    """A class, several labels or a number, as the collator gets it, by name and marked."""
    if problem.problem_type == "regression":
        return marked(f"{float(target):g}")
    if isinstance(target, int):
        return marked(problem.labels[target])
    return marked(", ".join(label for label, there in zip(problem.labels, target, strict=True) if there))


def text_shown(feature: Mapping[str, Any], problem: Problem) -> str:
    """A text with its target."""
    read = decoded(feature["input_ids"], problem)
    return f"{read} -> {target_shown(feature['labels'], problem)}" if "labels" in feature else read


def words_shown(feature: Mapping[str, Any], problem: Problem) -> str:
    """The words of a window, each with its tag; O, which is learned like the others, is told of the whole."""
    positions, ids = list(feature["position"]), feature["input_ids"]
    own = set(problem.processor.all_special_ids) - {problem.processor.unk_token_id}
    words, tagged = [], False
    for start, end in zip(positions, [*positions[1:], len(ids)], strict=True):
        word = decoded([one for one in ids[start : max(end, start + 1)] if one not in own], problem).strip()
        label = feature["labels"][start] if "labels" in feature else IGNORED
        name = problem.labels[label] if label != IGNORED else "O"
        words.append(word if name == "O" else f"{word} {marked(name)}")
        tagged = tagged or name != "O"
    return " ".join(words) if tagged or "labels" not in feature else f"{' '.join(words)} -> {marked('O')}"


def answer_shown(feature: Mapping[str, Any], problem: Problem) -> str:
    """A question with a window of its context, the answer marked in it."""
    ids = feature["input_ids"]
    if "labels" not in feature:
        return decoded(ids, problem)
    first, last = feature["labels"]
    if first == last == feature["null"]:
        return f"{decoded(ids, problem)} -> {marked('no answer')}"
    before, answer, after = ids[:first], ids[first : last + 1], ids[last + 1 :]
    return f"{decoded(before, problem)} {marked(decoded(answer, problem).strip())} {decoded(after, problem)}"


def gaps_shown(seen: Sequence[int], labels: Sequence[int], problem: Problem) -> str:
    """A text with hidden words, and behind each of its tokens what it was."""
    pieces = []
    for learned, group in groupby(range(len(seen)), key=lambda index: labels[index] != IGNORED):
        at = list(group)
        text = decoded([seen[index] for index in at], problem)
        pieces.append(f"{text} {marked(decoded([labels[index] for index in at], problem))}" if learned else text)
    return " ".join(pieces)


def picture_shown(feature: Mapping[str, Any], problem: Problem) -> str:
    """The size of a picture, with its target."""
    return f"{picture_of(feature)} -> {target_shown(feature['labels'], problem)}"


def picture_of(feature: Mapping[str, Any]) -> str:
    """The size of what a model sees of a picture."""
    channels, height, width = feature["pixel_values"].shape
    return f"picture of {width} x {height} pixels, {channels} channels"


def boxes_shown(
    feature: Mapping[str, Any], boxes: Sequence[Sequence[float]], problem: Problem, *, most: int = 20
) -> str:
    """The size of a picture, and its boxes by label.

    Args:
        feature: The feature.
        boxes: Left, top, width and height of each in pixels of the picture.
        problem: Its labels.
        most: So many boxes are shown.
    """
    found = [
        marked(f"{problem.labels[label]} {' '.join(f'{value:.0f}' for value in box)}")
        for label, box in zip(feature["labels"][:most], boxes, strict=False)
    ]
    more = f" and {len(boxes) - most} more" if len(boxes) > most else ""
    return f"{picture_of(feature)} -> {' '.join(found) or marked('nothing')}{more}"


def sound_of(feature: Mapping[str, Any], *, name: str, rate: float) -> str:
    """How much a model hears of a sound.

    Args:
        feature: The feature.
        name: Of its model input: a waveform, or a spectrogram.
        rate: Samples a second.
    """
    heard = feature[name]
    if len(heard.shape) == 1:
        return f"sound of {len(heard) / rate:.2f} s"
    return f"spectrogram of {heard.shape[0]} x {heard.shape[1]}"
