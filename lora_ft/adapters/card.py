"""Writes the model card of an adapter: what it is, its numbers, the command, how to load it, its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lora_ft.adapters.manifest import Manifest

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

PROCESSORS = {
    "AutoModelForImageClassification": "AutoImageProcessor",
    "AutoModelForObjectDetection": "AutoImageProcessor",
    "AutoModelForAudioClassification": "AutoFeatureExtractor",
    "AutoModelForCTC": "AutoProcessor",
    "AutoModelForSpeechSeq2Seq": "AutoProcessor",
}
"""The auto class of the processor that belongs to an auto class of models; all others read texts."""

INPUTS = {"AutoImageProcessor": "photo.jpg", "AutoFeatureExtractor": "sound.wav", "AutoProcessor": "sound.wav"}
"""What a user gives to `lora-ft predict`; a text otherwise."""

GEOMETRY = """
for layer in model.modules():  # MobileNet asks its convolutions for what peft (0.21) hides of adapted ones
    if isinstance(layer, BaseTunerLayer) and isinstance(layer.get_base_layer(), Conv2d):
        for name in ("kernel_size", "stride", "padding", "dilation"):
            setattr(layer, name, getattr(layer.get_base_layer(), name))
"""

LABEL_FIELDS = ("id2label", "label2id", "problem_type")
"""Config fields that name what comes out, and change no number."""


def model_card(
    manifest: Manifest,
    *,
    auto_class: str = "AutoModelForSequenceClassification",
    config: Mapping[str, Any] | None = None,
) -> str:
    """The text of `README.md`.

    Args:
        manifest: Of the adapter. Of its `run`, `command`, `rows`, `baseline`, `truncated` and `seconds` are
            shown where they are there.
        auto_class: The transformers auto class of the task.
        config: Config fields that the base is loaded with (`Task.model_config`); None: the number of labels.

    Returns:
        Markdown with YAML front matter; no licence is claimed.
    """
    title = f"{manifest.task} adapter for {_short_name(manifest.base.name)}"
    parts = [
        _front_matter(manifest),
        f"# {title}",
        _about(manifest),
        "## Numbers",
        _numbers(manifest),
        "## Data",
        _data(manifest),
        "## How it was made",
        _making(manifest),
        "## How to load it",
        _loading(manifest, auto_class=auto_class, config=config),
        "## Limits",
        _limits(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> str:
    """What the hub reads; a base that is a folder has no name there and is left out."""
    lines = ["---"]
    if HUB_ID.fullmatch(manifest.base.name):
        lines.append(f"base_model: {json.dumps(manifest.base.name)}")
    lines += ["library_name: peft", f"pipeline_tag: {manifest.task}", "tags:"]
    lines += ["- lora_ft", f"- {manifest.peft_type.lower()}"]
    return "\n".join([*lines, "---"])


def _about(manifest: Manifest) -> str:
    """One paragraph and the labels."""
    on = f", trained on the base in {manifest.quantization}" if manifest.quantization else ""
    head = f" with the head ({', '.join(manifest.head)})" if manifest.head else ""
    what = f"A {manifest.peft_type} adapter{head} for `{manifest.base.name}`{on}"
    text = f"{what}; the base itself is not in here."
    if "adopted" in manifest.run:
        text += f"\n\n{_adopted(manifest.run['adopted'])}\n"
    labels = f"\n\nLabels: {', '.join(f'`{one}`' for one in manifest.labels)}." if manifest.labels else ""
    space = "\n" if text.endswith("\n") else " "
    return f"{text}{space}Problem type: {manifest.problem_type}.{labels}"


def _adopted(said: Mapping[str, Any]) -> str:
    """Where an adopted adapter came from, and what nobody knows of it."""
    names = said["base_model_name_or_path"]
    lines = [
        "**Adopted**: made elsewhere with plain peft and taken over by `lora-ft adopt`. Not known, and not guessed: "
        f"{', '.join(said['unknown'])}. It names its base as `{names}`; that the base above is the one it was "
        "trained on is not proven, only that it has answered on it as it does now since it was adopted.",
        "",
        *(f"- {note}" for note in said["notes"]),
    ]
    return "\n".join(lines)


def _numbers(manifest: Manifest) -> str:
    """Metrics by split, beside those without training where they were measured."""
    if not manifest.metrics and "adopted" in manifest.run:
        return "Unknown: it was not measured. `lora-ft evaluate path/to/this/folder --data FILE` measures it."
    baseline = manifest.run.get("baseline") or {}
    rows = ["| split | metric | adapter | without training |", "| --- | --- | --- | --- |"]
    for split, metrics in manifest.metrics.items():
        values = metrics if isinstance(metrics, Mapping) else {split: metrics}
        for metric, value in values.items():
            rows.append(f"| {split} | {metric} | {_number(value)} | {_number(baseline.get(split, {}).get(metric))} |")
    if manifest.learned is False:
        rows.append("\n**This run did not learn: it is no better than an answer without training.**")
    if gap := manifest.run.get("gap"):
        rows.append(f"\nTraining rows against validation rows ({gap['verdict']}): {'; '.join(gap['reasons'])}.")
    return "\n".join(rows)


def _data(manifest: Manifest) -> str:
    """Rows of each split and how many were cut."""
    rows = manifest.run.get("rows") or {}
    cut = manifest.run.get("truncated") or {}
    lines = [
        f"- {split}: {count} rows" + (f", cut to the maximum length {cut[split]} times" if cut.get(split) else "")
        for split, count in rows.items()
    ]
    return "\n".join(lines) or "Not recorded."


def _making(manifest: Manifest) -> str:
    """Command, seed, precision, versions."""
    command = manifest.run.get("command")
    seconds = manifest.run.get("seconds")
    if "adopted" in manifest.run:
        peft_version = manifest.run["adopted"]["peft_version"] or "of an unknown version"
        packages = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
        return f"Trained with peft {peft_version}; adopted with {packages}."
    facts = [f"seed {manifest.seed}", manifest.precision, manifest.quantization or "not quantised"]
    if isinstance(seconds, (int, float)):
        facts.append(f"{seconds:.0f} s")
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    text = f"{', '.join(facts)}. {versions}. The whole recipe is `recipe.yaml`."
    return f"```\n{command}\n```\n\n{text}" if command else text


def _loading(manifest: Manifest, *, auto_class: str, config: Mapping[str, Any] | None) -> str:
    """With lora_ft, and with plain peft."""
    reader = PROCESSORS.get(auto_class, "AutoTokenizer")
    name = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image_processor"}.get(reader, "processor")
    place = "base_name" if reader == "AutoImageProcessor" else '"path/to/this/folder"'
    given = dict(config) if config is not None else {"num_labels": len(manifest.labels)} if manifest.labels else {}
    fields = {key: value for key, value in given.items() if key not in LABEL_FIELDS and value is not None}
    place_of_base = ["base_name"] + ([f"revision={manifest.base.revision!r}"] if manifest.base.revision else [])
    arguments = list(place_of_base)
    setting = ""
    if set(fields) - {"num_labels"}:
        setting = f"config = AutoConfig.from_pretrained({', '.join(place_of_base)})\nconfig.update({fields!r})\n"
        arguments.append("config=config")
    elif fields:
        arguments.append(f"num_labels={fields['num_labels']}")
    if manifest.head:  # the base may have another head, which the one in this folder replaces
        arguments.append("ignore_mismatched_sizes=True")
    classes = ", ".join([*(["AutoConfig"] if setting else []), auto_class, reader])
    geometry, imports = "", ""
    if reader == "AutoImageProcessor":
        imports = "from peft.tuners.tuners_utils import BaseTunerLayer\nfrom torch.nn import Conv2d\n"
        geometry = GEOMETRY.rstrip("\n")
    order = json.dumps(list(manifest.labels), ensure_ascii=False)
    labels = f"\n\nOutput i of the head belongs to label i of: {order}." if manifest.labels else ""
    return (
        "lora_ft verifies files, base and answers before it predicts:\n\n"
        f'```\nlora-ft predict path/to/this/folder "{INPUTS.get(reader, "a text")}"\n```\n\n'
        "Plain peft loads it too, without these checks:\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        f"{imports}from transformers import {classes}\n\n"
        f"base_name = {json.dumps(manifest.base.name)}\n"
        f"{setting}base = {auto_class}.from_pretrained({', '.join(arguments)})\n"
        f'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval(){geometry}\n'
        f"{name} = {reader}.from_pretrained({place})\n"
        f"```{labels}"
    )


def _limits(manifest: Manifest) -> str:
    """What a user must not expect."""
    lines = [
        "- It belongs to exactly the base above; on another one of the same shape it answers nonsense "
        "without an error (lora_ft refuses it).",
    ]
    if "adopted" not in manifest.run:
        lines.append("- The numbers hold for rows like those it was trained on.")
    elif manifest.metrics:
        lines.append("- The numbers hold for rows like those it was measured on; what it was trained on is not known.")
    length = manifest.settings.get("max_length")
    if length:
        lines.append(f"- Inputs are cut to {length} tokens.")
    lines += [f"- {note}" for note in preparation_notes(manifest)]
    if manifest.new_head and "adopted" not in manifest.run:
        lines.append("- The head was trained from scratch on the rows above alone.")
    return "\n".join(lines)


def preparation_notes(manifest: Manifest) -> list[str]:
    """What whoever runs it without lora_ft must do to texts first; empty where nothing."""
    if not manifest.preparation:
        return []
    steps = ", ".join(f"`{name}`" for name in manifest.preparation)
    return [
        f"It was trained on prepared texts: {steps}, in this order. lora_ft prepares every text that it answers by "
        "itself; elsewhere do the same first (`preparation` in the JSON file beside this one says how)."
    ]


def _short_name(name: str) -> str:
    """The last part of a hub id or folder."""
    return name.rstrip("/").rpartition("/")[2] or name


def _number(value: Any) -> str:
    """Four decimals, or empty."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.4f}"
    return "" if value is None else str(value)
