"""Several adapters on one base, and new ones combined of them by peft's own code; heads are averaged beside it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn

from lora_ft.adapters.compress import float_tensors
from lora_ft.adapters.convolutions import show_geometry
from lora_ft.adapters.folder import check_landed
from lora_ft.adapters.merge import DROPPED, untie
from lora_ft.adapters.merge_plan import FACTOR, Plan, Source
from lora_ft.adapters.verify import weights_file
from lora_ft.errors import AdapterRefused

COMBINED = "combined"
PREFIX = "base_model.model."

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Sources:
    """Adapters side by side on one base; their heads are put into the base itself, one at a time.

    Attributes:
        model: The base with all adapters; which of them is active is changed by `answering` and `combined`.
        names: Names of the adapters in it, in the order they were given.
        heads: For each adapter its trained head: tensors by their name in the base, rows in the order of the first.
        original_head: The same tensors of the base as it was loaded.
        fields: Fields of the first adapter's config that a combined one keeps.
        hook: What keeps inputs from the base that peft's wrapper for this task does not hand on.
    """

    model: PeftModel
    names: tuple[str, ...]
    heads: tuple[Tensors, ...]
    original_head: Tensors
    fields: Mapping[str, Any]
    hook: Any


@dataclass(frozen=True)
class Combined:
    """A new adapter as tensors.

    Attributes:
        tensors: A, B and the head, by the names of an adapter file.
        config: peft's config for it.
    """

    tensors: Tensors
    config: LoraConfig


def attach_sources(
    base_model: nn.Module, sources: Sequence[Source], *, orders: Sequence[Sequence[int] | None], labelled: Sequence[str]
) -> Sources:
    """Puts several saved adapters on one base and makes sure that every saved tensor has landed.

    Args:
        base_model: The base with a head of the right shape; changed in place.
        sources: Adapters that `check_together` has passed.
        orders: For each adapter the row of its head for each label of the first one, or None where they lie alike.
        labelled: Names of the modules that have a row for each label.

    Returns:
        The adapters, frozen and in eval mode; the first is active.

    Raises:
        AdapterRefused: A tensor does not fit the base, or did not land.
    """
    names = tuple(f"source{index}" for index in range(len(sources)))
    heads: list[Tensors] = []
    model: PeftModel | None = None
    head_modules = {key.removeprefix(PREFIX).rpartition(".")[0] for key in _head_names(sources[0])}
    untie(base_model, [base_model.get_submodule(name) for name in sorted(head_modules)])
    for name, source, order in zip(names, sources, orders, strict=True):
        file = weights_file(source.folder)
        saved = float_tensors(source.folder)
        factors = {key: value for key, value in saved.items() if FACTOR.match(key)}
        head = {key.removeprefix(PREFIX): value for key, value in saved.items() if key not in factors}
        heads.append(_in_order(head, order, labelled=labelled))
        config = LoraConfig(**{**_fields(source), "modules_to_save": None, "task_type": None})
        try:
            if model is None:
                model = get_peft_model(base_model, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
            set_peft_model_state_dict(model, factors, adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise AdapterRefused(f"{file}: does not fit {source.manifest.base.name}: {error}") from error
        check_landed(model, factors, file=file, adapter_name=name)
        # the scaling is in the layers by now; a combined adapter would take alpha / sqrt(r) over (peft 0.21)
        model.peft_config[name].use_rslora = False
    if model is None:
        raise AdapterRefused("merge: no adapter is given. Expected two or more.")
    show_geometry(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    dropped = DROPPED.get(str(sources[0].config.get("task_type")))
    hook = base_model.register_forward_pre_hook(_without(dropped), with_kwargs=True)
    state = base_model.state_dict()
    original = {key: state[_in_memory(key, state)].detach().clone() for key in heads[0]}
    fields = {**_fields(sources[0]), **{key: sources[0].config.get(key) for key in ("modules_to_save", "task_type")}}
    return Sources(model.eval(), names, tuple(heads), original, fields, hook)


@contextlib.contextmanager
def answering(sources: Sources, index: int) -> Iterator[PeftModel]:
    """The model as one of the adapters, with its head.

    Args:
        sources: The adapters.
        index: Which one.
    """
    with _head(sources, sources.heads[index]):
        sources.model.set_adapter(sources.names[index], inference_mode=True)
        yield sources.model


@contextlib.contextmanager
def combined(sources: Sources, plan: Plan) -> Iterator[tuple[PeftModel, Combined]]:
    """The model as a new adapter that is combined of the others, which is dropped at the end.

    Args:
        sources: The adapters.
        plan: How; checked by `check_plan`. An adapter of weight 0 is left out altogether.

    Yields:
        The model with the new adapter active, and that adapter as tensors.

    Raises:
        AdapterRefused: peft cannot combine them.

    Source:
        peft's `LoraModel.add_weighted_adapter`. Weighted sums of heads: Wortsman et al. 2022, arXiv:2203.05482.
    """
    model = sources.model
    # peft lets an adapter of weight 0 vote on TIES' signs, and take up rank in cat
    taken = [(name, weight) for name, weight in zip(sources.names, plan.weights, strict=True) if weight]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            model.base_model.add_weighted_adapter(
                [name for name, _ in taken],
                [weight for _, weight in taken],
                COMBINED,
                combination_type=plan.method,
                svd_rank=plan.rank,
                svd_full_matrices=False,
                density=plan.density,
            )
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        if COMBINED in model.peft_config:
            model.delete_adapter(COMBINED)
        raise AdapterRefused(
            f"--method {plan.method}: peft {peft.__version__} cannot combine these adapters: {error}. "
            "Choose --method cat."
        ) from error
    try:
        _fill_rank(model)
        show_geometry(model)
        model.set_adapter(COMBINED, inference_mode=True)
        head = average_heads(sources.heads, plan.weights)
        with _head(sources, head):
            yield model, _as_tensors(sources, head)
    finally:
        model.delete_adapter(COMBINED)


def average_heads(heads: Sequence[Tensors], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The heads averaged by the weights, in fp32; the weights are divided by their sum.

    Args:
        heads: Tensors by name, rows in one order of labels.
        weights: One for each.

    Returns:
        Tensors by the same names.
    """
    total = sum(weights)
    averaged = {}
    for key, first in heads[0].items():
        parts = [weight / total * head[key].float() for head, weight in zip(heads, weights, strict=True)]
        averaged[key] = torch.stack(parts).sum(0).to(first.dtype)
    return averaged


def true_difference(sources: Sources, plan: Plan) -> float:
    """How far a combined adapter is from the weighted sum of the deltas, relative to that sum, over all modules.

    Args:
        sources: The adapters.
        plan: How they are combined.

    Returns:
        Frobenius norm of the difference / Frobenius norm of the sum; 0 for `cat` but for rounding.
    """
    difference = size = 0.0
    with combined(sources, plan) as (model, _), torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, LoraLayer) or not set(_adapters(layer)) & set(sources.names):
                continue
            parts = [
                weight * layer.get_delta_weight(name).float()
                for name, weight in zip(sources.names, plan.weights, strict=True)
                if name in _adapters(layer)
            ]
            wanted = torch.stack(parts).sum(0)
            difference += float((layer.get_delta_weight(COMBINED).float() - wanted).square().sum())
            size += float(wanted.square().sum())
    return (difference / size) ** 0.5 if size else 0.0


def attach_combined(sources: Sources, new: Combined) -> PeftModel:
    """Takes all adapters off the base and puts a combined one on it, as peft itself would load it.

    Args:
        sources: The adapters; used up.
        new: What `combined` gave.

    Returns:
        The adapted model, frozen and in eval mode, with one adapter `default` and its head.

    Raises:
        AdapterRefused: A tensor did not land.
    """
    sources.hook.remove()
    base_model = sources.model.unload()
    model: PeftModel = get_peft_model(base_model, new.config)
    # peft adds the names of every head it knows
    model.peft_config["default"].modules_to_save = sources.fields["modules_to_save"]
    set_peft_model_state_dict(model, dict(new.tensors))
    show_geometry(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = [key for key in {**loaded, **new.tensors} if key not in loaded or key not in new.tensors]
    for key in set(loaded) & set(new.tensors):
        landed = loaded[key].detach().cpu()
        if not torch.equal(landed, new.tensors[key].to(landed.dtype)):
            wrong.append(key)
    if wrong:
        raise AdapterRefused(
            f"merge: {len(wrong)} tensors of the new adapter did not land on the base, {wrong[0]} first."
        )
    return model.eval()


def _fields(source: Source) -> dict[str, Any]:
    """What of a config decides A, B and their scaling; the targets are the modules that really have them."""
    config = source.config
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")
    given = {key: config[key] for key in kept if key in config}
    return {**given, "target_modules": sorted(source.ranks), "inference_mode": False}


def _without(name: str | None) -> Callable[..., tuple[Any, Any]]:
    """A hook that takes one input away before the base sees it."""

    def drop(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del module
        return given, {key: value for key, value in named.items() if key != name}

    return drop


def _head_names(source: Source) -> list[str]:
    """Names of the tensors of an adapter's head."""
    return [name for name in source.manifest.tensors if not FACTOR.match(name)]


def _adapters(layer: LoraLayer) -> list[str]:
    """Names of the adapters that a layer has."""
    return [*layer.lora_A, *layer.lora_embedding_A]


def _in_order(head: Tensors, order: Sequence[int] | None, *, labelled: Sequence[str]) -> dict[str, torch.Tensor]:
    """A head with the rows of its labels in another order; a row more (no object) stays last."""
    if order is None:
        return dict(head)
    sorted_head = {}
    for key, value in head.items():
        rows = list(range(len(value)))
        if key.rpartition(".")[0] in labelled:
            rows[: len(order)] = order
        sorted_head[key] = value[rows].contiguous()
    return sorted_head


def _in_memory(key: str, state: Mapping[str, Any]) -> str:
    """The name of a head's tensor in the base while adapters are on it."""
    if key in state:
        return key
    module, _, last = key.rpartition(".")
    return f"{module}.base_layer.{last}"


@contextlib.contextmanager
def _head(sources: Sources, head: Tensors) -> Iterator[None]:
    """The base with this head for a while."""
    _put(sources, head)
    try:
        yield
    finally:
        _put(sources, sources.original_head)


def _put(sources: Sources, head: Tensors) -> None:
    """Copies a head into the base."""
    state = sources.model.get_base_model().state_dict()
    with torch.no_grad():
        for key, value in head.items():
            state[_in_memory(key, state)].copy_(value)


def _fill_rank(model: PeftModel) -> None:
    """Pads A and B with zeros up to the rank that the config says; peft 0.21 leaves smaller ones, which do not load."""
    rank = model.peft_config[COMBINED].r
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        if COMBINED in layer.lora_A:
            pairs = (layer.lora_A[COMBINED].weight, layer.lora_B[COMBINED].weight)
        elif COMBINED in layer.lora_embedding_A:
            pairs = (layer.lora_embedding_A[COMBINED], layer.lora_embedding_B[COMBINED])
        else:
            continue
        for axis, parameter in enumerate(pairs):  # A: (r, ...), B: (out, r, ...)
            shape = list(parameter.shape)
            shape[axis] = rank - shape[axis]
            if shape[axis]:
                parameter.data = torch.cat([parameter.data, parameter.new_zeros(shape)], dim=axis)
            parameter.data = parameter.data.contiguous()


def _as_tensors(sources: Sources, head: Tensors) -> Combined:
    """The combined adapter and its head, on the CPU, under the names of an adapter file."""
    model = sources.model
    factors = get_peft_model_state_dict(model, adapter_name=COMBINED, save_embedding_layers=False)
    tensors = {key: value.detach().cpu().clone() for key, value in factors.items()}
    tensors |= {f"{PREFIX}{key}": value.clone() for key, value in head.items()}
    made = model.peft_config[COMBINED]
    config = LoraConfig(
        **{
            **copy.deepcopy(dict(sources.fields)),  # peft appends to the list of modules
            "r": made.r,
            "lora_alpha": made.r,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
            "target_modules": sorted(made.target_modules),
        }
    )
    return Combined(tensors, config)
