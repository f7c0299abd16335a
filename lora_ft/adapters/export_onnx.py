"""A model as an ONNX graph with dynamic axes, and the proof that onnxruntime answers as torch does.

torch has two exporters. The one by tracing (`dynamo=False`) is taken. With torch 2.13 both give right graphs for BERT,
DistilBERT, RoBERTa, ViT, ResNet, MobileNetV2, timm, wav2vec2, HuBERT, AST and Whisper's encoder (differences of 1.5e-5
and less), but the one by `torch.export` takes 11 s instead of 1.8 s for MiniLM, needs onnxscript, and its graph
answers in 362 ms instead of 291 ms (16 texts of 64 tokens, one core). What tracing could bake in (a size, a branch) is
found out by the comparison on other batch sizes and lengths.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_ft.adapters.probe import FP32_TOLERANCE
from lora_ft.errors import RunError

OPSET = 17
"""onnxruntime 1.13 and later read it; LayerNormalization is one operator since then."""

Batch = Mapping[str, torch.Tensor]

SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class PlainAnswers(nn.Module):
    """A model whose inputs are in order and whose outputs are tensors, as a graph has them.

    Args:
        model: Gives a mapping of outputs.
        inputs: Names of its inputs.
        outputs: Names of the outputs that are wanted.
    """

    def __init__(self, model: nn.Module, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of `inputs` -> tensors in the order of `outputs`."""
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(found[name] for name in self.outputs)


def answers(model: nn.Module, batch: Batch, *, outputs: Sequence[str]) -> list[np.ndarray]:
    """What a model says of a batch, in fp32.

    Args:
        model: In eval mode.
        batch: Its inputs.
        outputs: Names of the outputs that are wanted.
    """
    with torch.no_grad():
        found = PlainAnswers(model, inputs=tuple(batch), outputs=outputs)(*batch.values())
    return [tensor.float().cpu().numpy() for tensor in found]


def write_graph(model: nn.Module, batch: Batch, file: Path, *, outputs: Sequence[str]) -> dict[str, dict[int, str]]:
    """Writes a model as an ONNX graph with dynamic batch and sequence axes.

    Args:
        model: A plain model in fp32 on the CPU, in eval mode.
        batch: Inputs with at least two rows, of which one is padded where there is a mask.
        file: The file to be.
        outputs: Names of the outputs.

    Returns:
        The dynamic axes of each input, `{"input_ids": {0: "batch", 1: "sequence"}}`.

    Raises:
        RunError: torch cannot trace this model.
    """
    axes = {name: _axes(name, tensor) for name, tensor in batch.items()}
    wrapped = PlainAnswers(model, inputs=tuple(batch), outputs=outputs).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # a line for each branch that tracing passes; the comparison judges them
            torch.onnx.export(
                wrapped,
                tuple(batch.values()),
                str(file),
                dynamo=False,
                input_names=list(batch),
                output_names=list(outputs),
                dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
                opset_version=OPSET,
            )
    except (RuntimeError, TypeError, ValueError) as error:  # torch's OnnxExporterError is a RuntimeError
        raise RunError(
            f"onnx: torch {torch.__version__} cannot trace {type(model).__name__}: {error}. Use --format safetensors."
        ) from error
    return axes


def compare_graph(
    file: Path, batches: Sequence[Batch], expected: Sequence[Sequence[np.ndarray]], *, outputs: Sequence[str]
) -> float:
    """Makes sure that a graph answers under onnxruntime as the adapter did under torch.

    Args:
        file: The graph.
        batches: Inputs of different sizes and lengths.
        expected: For each of them the outputs of torch.
        outputs: Names of the outputs.

    Returns:
        The largest difference of a value.

    Raises:
        RunError: It is larger than the tolerance, in units of the largest value (at least 1).
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}  # an input that changes nothing is not part of the graph
    largest = 0.0
    for batch, wanted in zip(batches, expected, strict=True):
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items())
        found = session.run(list(outputs), {name: batch[name].numpy() for name in batch if name in taken})
        for name, ours, theirs in zip(outputs, found, wanted, strict=True):
            if ours.shape != theirs.shape:
                raise RunError(
                    f"onnx: {name} has the shape {list(ours.shape)} under onnxruntime, {list(theirs.shape)} under "
                    f"torch ({shapes}): a size was baked in. Use --format safetensors."
                )
            difference = float(np.abs(ours - theirs).max())
            allowed = FP32_TOLERANCE * max(1.0, float(np.abs(theirs).max()))
            if not difference <= allowed:  # also where it is no number
                raise RunError(
                    f"onnx: {name} differs by {difference:.3g} between onnxruntime and torch, allowed {allowed:.3g} "
                    f"({shapes}). Nothing was written. Use --format safetensors."
                )
            largest = max(largest, difference)
    return largest


def other_sizes(batch: Batch, *, longest: int) -> Iterator[dict[str, torch.Tensor]]:
    """The rows of a batch in other batch sizes and lengths: one row, twice as many and one, shorter, longer.

    Args:
        batch: Inputs `(rows, ...)`.
        longest: Positions that the model has, tokens; sounds have no limit.
    """
    rows = len(next(iter(batch.values())))
    dynamic = {name for name, tensor in batch.items() if 1 in _axes(name, tensor)}
    yield dict(batch)
    yield {name: tensor[:1] for name, tensor in batch.items()}
    turned = [*range(rows), *reversed(range(rows)), 0]
    yield {name: tensor[turned] for name, tensor in batch.items()}
    if not dynamic:
        return
    length = max(batch[name].shape[1] for name in dynamic)
    shorter = max(length // 2, 3)
    yield {name: tensor[:, :shorter] if name in dynamic else tensor for name, tensor in batch.items()}
    limit = longest if "input_ids" in batch else 2 * length
    columns = [index % length for index in range(min(2 * length - 1, max(limit, length)))]
    yield {name: tensor[:, columns] if name in dynamic else tensor for name, tensor in batch.items()}


def _axes(name: str, tensor: torch.Tensor) -> dict[int, str]:
    """Rows, and tokens or samples; images and spectrograms have the size that their processor gives them."""
    sequence = name in SEQUENCES or tensor.dim() == 2
    return {0: "batch", 1: "sequence"} if sequence else {0: "batch"}


def graph_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The part of a batch that a model takes.

    Sounds: a mask from their lengths where the base reads one. Bases with a group norm over time read none, and a sound
    that is padded answers otherwise than alone; there a graph is for sounds of one length.

    Args:
        model: The model, without peft's wrapper.
        batch: Of the task's collator.
    """
    known = inspect.signature(model.forward).parameters
    inputs = {
        name: value
        for name, value in batch.items()
        if name in known and name != "labels" and isinstance(value, torch.Tensor)
    }
    if "input_values" in inputs and "samples" in batch and vars(model.config).get("feat_extract_norm") == "layer":
        positions = torch.arange(inputs["input_values"].shape[1])
        inputs["attention_mask"] = (positions < batch["samples"][:, None]).long()
    return inputs
