"""What is wrong with the images or sounds of a recipe and with what is to be learned of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.assemble.examination import Seen, SplitReport, Watch
from lora_ft.data.doctor.boxes import BoxCheck
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.labels import LabelCheck
from lora_ft.data.doctor.media_names import IMAGE_FINDINGS, SOUND_FINDINGS
from lora_ft.data.doctor.stream import Batch, target_column
from lora_ft.data.doctor.targets import target_reader
from lora_ft.data.doctor.transcripts import TranscriptCheck
from lora_ft.data.labels import SINGLE
from lora_ft.data.rows import Splits
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task

MEDIA_AT_ONCE = 32


def examine_media(recipe: Recipe, task: Task, splits: Splits, *, problem_type: str, watch: Watch) -> Seen:
    """Everything about images or sounds and their labels; a few of them are in memory at once."""
    names, off = recipe.dataset.label_names or splits.label_names, recipe.checks_off
    labels = LabelCheck(
        known=recipe.dataset.label_names, one_each=problem_type == SINGLE,
        weighs=task.weighs_classes and not recipe.makes_up_for_rare_classes,
    )  # fmt: skip
    target = target_column(splits["train"], task.columns)
    target_of = target_reader(splits["train"], task.columns, problem_type=problem_type, names=names)
    check = _media_check(recipe, task, splits)
    boxes = BoxCheck()
    boxed = [one.name for one in task.columns if one.kind == "objects" and not off.issuperset(BoxCheck.NAMES)]
    with watch(sum(map(len, splits.values())), "examine") as advance:
        for split, table in splits.items():
            for start in range(0, len(table), MEDIA_AT_ONCE):
                rows = table[start : start + MEDIA_AT_ONCE]
                if check is not None:
                    check.add(split, start, rows)
                for at, value in enumerate(rows[boxed[0]] if boxed else ()):
                    boxes.add(split, start + at, value)
                if target is not None and target.name in rows:
                    told = [target_of(value) for value in rows[target.name]]
                    keys, found = [key for key, _ in told], [one for _, one in told]
                    labels.add(Batch(split, start, {}, [""] * len(found), keys, found))
                advance(len(next(iter(rows.values()))))
    reports = {split: SplitReport(len(t), 0, dict(labels.counts.get(split, {}))) for split, t in splits.items()}
    findings = [*(check.findings() if check is not None else ()), *boxes.findings()]
    return reports, [*findings, *(labels.findings() if labels.counts else ())], (None, None)


class _Images:
    """Images of rows, one by one."""

    def __init__(self, column: str) -> None:
        from lora_ft.data.doctor.images import ImageCheck

        self.column, self.check = column, ImageCheck()

    def add(self, split: str, start: int, rows: Mapping[str, Sequence[Any]]) -> None:
        """Looks at the images of some rows."""
        for at, value in enumerate(rows[self.column]):
            self.check.add(split, start + at, value)

    def findings(self) -> list[Finding]:
        """See `ImageCheck`."""
        return self.check.findings()


class _Sounds:
    """Sounds of rows, one by one, with their transcripts where there are any."""

    def __init__(self, column: str, *, transcript: str | None, longest_s: float | None) -> None:
        from lora_ft.data.doctor.sounds import SoundCheck

        self.column, self.transcript = column, transcript
        self.check, self.transcripts = SoundCheck(longest_s=longest_s), TranscriptCheck()

    def add(self, split: str, start: int, rows: Mapping[str, Sequence[Any]]) -> None:
        """Looks at the sounds of some rows."""
        for at, value in enumerate(rows[self.column]):
            seconds = self.check.add(split, start + at, value)
            if self.transcript is not None and seconds is not None:
                self.transcripts.add(split, start + at, rows[self.transcript][at], seconds=seconds)

    def findings(self) -> list[Finding]:
        """See `SoundCheck` and `TranscriptCheck`."""
        return [*self.check.findings(), *self.transcripts.findings()]


def _media_check(recipe: Recipe, task: Task, splits: Splits) -> _Images | _Sounds | None:
    """What looks into the files; None where the recipe turns off all that it could find."""
    off, there = recipe.checks_off, splits["train"].column_names
    kind, name = next((column.kind, column.name) for column in task.inputs() if column.kind in ("image", "audio"))
    if kind == "image":
        return None if off.issuperset(IMAGE_FINDINGS) else _Images(name)
    texts = [column.name for column in task.columns if column.kind == "text" and column.name in there]
    transcript = texts[0] if texts and not off.issuperset(TranscriptCheck.NAMES) else None
    if off.issuperset(SOUND_FINDINGS) and transcript is None:
        return None
    return _Sounds(name, transcript=transcript, longest_s=recipe.processor.get("max_length_s"))
