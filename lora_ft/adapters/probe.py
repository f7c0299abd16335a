"""The probe: a stored batch whose answers are compared at every load: a lost head or adapter cannot pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from lora_ft.adapters.initial import at_the_start, initial_adapter
from lora_ft.adapters.manifest import Probe
from lora_ft.errors import AdapterRefused, RunError

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}

FP32_TOLERANCE = 1e-3
HALF_TOLERANCE = 0.05
INT8_TOLERANCE = 0.15
REQUANTIZED_TOLERANCE = 1.5
"""Largest difference of values in units of the largest one (at least 1); measured, see docs/adapters.md."""

CLEARLY_NEARER = 0.6
LARGE = 2_000
"""A tensor of more elements is not written out: the images of a probe would be megabytes of digits."""

NORMAL = "random_normal"
CONSTANT = "constant"

Forward = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
"""From a model and a batch to what is compared, `(rows, values)`."""


def make_probe(
    model: PeftModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    forward: Forward,
    precision: str,
    quantization: str | None,
) -> Probe:
    """Records what the trained model answers, with its adapter and without.

    A 16-bit precision means autocast, as everywhere in lora_ft.

    Args:
        model: The trained model.
        inputs: A padded batch of model inputs, rows first; `labels` is left out. Of large floating point inputs
            (images, spectrograms) only the shape counts, see `probe_inputs`.
        forward: What to compute of a batch; decides what is compared.
        precision: Compute dtype, `float32`, `bfloat16` or `float16`.
        quantization: `nf4`, `fp4`, `int8`, or None.

    Returns:
        The probe.

    Raises:
        RunError: The model answers with numbers that are not finite.
    """
    batch, stored = probe_inputs(inputs)
    values = _values(model, batch, forward=forward, precision=precision)
    with adapter_off(model) as bare_model:
        bare = _values(bare_model, batch, forward=forward, precision=precision)
    if not (torch.isfinite(values).all() and torch.isfinite(bare).all()):
        raise RunError(
            "probe: the trained model answers with numbers that are not finite. The run diverged: lower "
            "training_args.learning_rate, or train in bf16 or fp32."
        )
    return Probe(
        inputs=stored,
        logits=values.tolist(),
        bare_logits=bare.tolist(),
        precision=precision,
        quantization=quantization,
    )


def probe_inputs(batch: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Chooses how a batch is stored, and gives the tensors that come back from that.

    Small tensors and masks are stored as they are. A large floating point tensor is replaced by random numbers of
    the same shape, of which only shape and seed are stored; a large tensor of one value (a mask) by that value.

    Args:
        batch: Model inputs; `labels`, and what is no tensor, is left out.

    Returns:
        The tensors, and for the manifest by the same names: nested lists, `{"random_normal": {"shape": [8, 3, 32, 32],
        "seed": 0}}` or `{"constant": {"shape": [8, 900, 900], "value": 1}}`.
    """
    stored: dict[str, Any] = {}
    for seed, (name, tensor) in enumerate(sorted(batch.items())):
        if name == "labels" or not isinstance(tensor, torch.Tensor):
            continue
        shape = list(tensor.shape)
        if tensor.numel() > LARGE and tensor.is_floating_point():
            stored[name] = {NORMAL: {"shape": shape, "seed": seed}}
        elif tensor.numel() > LARGE and bool((tensor == tensor.flatten()[0]).all()):
            stored[name] = {CONSTANT: {"shape": shape, "value": tensor.flatten()[0].item()}}
        else:
            stored[name] = tensor.tolist()
    return stored_tensors(stored), stored


def stored_tensors(stored: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a stored batch; the same numbers with every version of numpy and torch.

    Args:
        stored: As `probe_inputs` makes it.

    Returns:
        Tensors in float32, int64 or bool.
    """
    return {name: _restored(value) for name, value in stored.items()}


def _restored(value: Any) -> torch.Tensor:
    """One stored tensor."""
    if not isinstance(value, dict):
        return torch.tensor(value)
    if NORMAL in value:
        shape = value[NORMAL]["shape"]
        # RandomState is frozen for good (NEP 19); numpy's newer generators may change
        numbers = np.random.RandomState(value[NORMAL]["seed"]).standard_normal(math.prod(shape))
        return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)
    return torch.full(value[CONSTANT]["shape"], value[CONSTANT]["value"])


def check_probe(model: PeftModel, probe: Probe, *, forward: Forward, precision: str, quantization: str | None) -> float:
    """Makes sure that a loaded adapter answers as it did when it was trained.

    Two criteria: the values differ by no more than the tolerance of both precisions, and they are not clearly
    nearer to those without the adapter, where its effect can be told from the noise.

    Args:
        model: The loaded model.
        probe: From the manifest.
        forward: The same that the probe was made with.
        precision: Compute dtype now.
        quantization: Quantisation of the base now.

    Returns:
        The largest difference found.

    Raises:
        AdapterRefused: The answers differ, or are not finite.
    """
    now = _values(model, stored_tensors(probe.inputs), forward=forward, precision=precision)
    then = torch.tensor(probe.logits)
    if now.shape != then.shape:
        raise AdapterRefused(
            f"probe: the model answers with shape {tuple(now.shape)}, the adapter was recorded with "
            f"{tuple(then.shape)}: the head is another one. Copy the folder again."
        )
    if not torch.isfinite(now).all():
        raise AdapterRefused(
            f"probe: the model answers with numbers that are not finite in {precision}. {_advice(precision)}"
        )
    allowed = tolerance(probe, precision=precision, quantization=quantization)
    found = float((now - then).abs().max())
    if found > allowed:
        raise AdapterRefused(
            f"probe: logits differ from the recorded ones by {found:.3g}, allowed {allowed:.3g} "
            f"({_words(probe.precision, probe.quantization)} then, {_words(precision, quantization)} now): "
            "head or adapter is not the one that was trained, or the base is another one. Copy the folder "
            "again, or train again."
        )
    noise = _rms(then) / 2 if _requantized(probe, quantization) else allowed / 2
    if _looks_bare(now, probe, noise=noise):
        raise AdapterRefused(
            "probe: the logits are those of the base without the adapter: the adapter is not in effect. "
            "Copy the folder again, or train again."
        )
    return found


def tolerance(probe: Probe, *, precision: str, quantization: str | None) -> float:
    """The largest difference of values that two precisions can make; measured, see docs/adapters.md.

    Args:
        probe: What was recorded.
        precision: Compute dtype now.
        quantization: Quantisation of the base now.

    Returns:
        The tolerance in units of the values.
    """
    scale = max(1.0, float(torch.tensor(probe.logits).abs().max()))
    if _requantized(probe, quantization):
        return REQUANTIZED_TOLERANCE * scale
    if "int8" in (probe.quantization, quantization):
        return INT8_TOLERANCE * scale
    if probe.quantization is None and {probe.precision, precision} == {"float32"}:
        return FP32_TOLERANCE * scale
    return HALF_TOLERANCE * scale  # also 4-bit on the same: its kernels compute in 16 bits on some devices


def _requantized(probe: Probe, quantization: str | None) -> bool:
    """Whether 4-bit weights came, went or changed: that rounding can move logits by their own size."""
    kinds = {probe.quantization, quantization}
    return len(kinds) > 1 and bool(kinds & {"nf4", "fp4"})


def _looks_bare(now: torch.Tensor, probe: Probe, *, noise: float) -> bool:
    """Whether values `(rows, values)` are clearly nearer to those without the adapter than to the recorded.

    Args:
        now: The values now.
        probe: What was recorded.
        noise: Root mean square up to which an effect cannot be told from the noise of the precisions.
    """
    then, bare = torch.tensor(probe.logits), torch.tensor(probe.bare_logits)
    if _rms(then - bare) <= noise:
        return False
    return _rms(now - bare) < CLEARLY_NEARER * _rms(now - then)


def _rms(values: torch.Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def _values(model: Any, batch: Mapping[str, torch.Tensor], *, forward: Forward, precision: str) -> torch.Tensor:
    """What is compared of a batch, in fp32 on the CPU, without dropout; the model's mode is put back."""
    device = next(model.parameters()).device
    dtype = HALF.get(precision)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            values = forward(model, {name: value.to(device) for name, value in batch.items()})
    finally:
        model.train(training)
    return values.float().cpu()


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[Any]:
    """The model without its adapter but with its trained head; what trains and what does not is put back.

    Args:
        model: An adapted model.
    """
    if initial_adapter(model):
        with at_the_start(model):
            yield model
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:  # virtual tokens lie outside the base
        yield model.base_model
        return
    training = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in training:
            parameter.requires_grad_(flag)


def _words(precision: str, quantization: str | None) -> str:
    """`float32`, or `bfloat16 on nf4`."""
    return precision if quantization is None else f"{precision} on {quantization}"


def _advice(precision: str) -> str:
    """What to do about numbers that are not finite."""
    return "Use float32 or bfloat16." if precision == "float16" else "The adapter is damaged; copy the folder again."
