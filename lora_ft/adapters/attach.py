"""Puts an adapter on a frozen base and counts what will be trained."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peft
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lora_ft.adapters.convolutions import show_geometry
from lora_ft.adapters.initial import changes_base, remember_initial
from lora_ft.adapters.method import build_config, check_head, check_initialisation, set_prompt_sizes
from lora_ft.adapters.targets import head_wrappers, inside, set_targets
from lora_ft.errors import InputError

if TYPE_CHECKING:
    from lora_ft.adapters.lean_readers import Readers


def attach(
    model: nn.Module,
    peft_config: Mapping[str, Any],
    *,
    task_type: str | None,
    head: Sequence[str],
    total_steps: int | None = None,
    readers: Readers | None = None,
) -> PeftModel:
    """Puts an adapter on a frozen base; afterwards only adapter and head train, all of it in fp32.

    Args:
        model: The base, possibly quantised; changed in place.
        peft_config: `peft_type` and fields of that method's config class, as in the recipe.
        task_type: peft's TaskType, or None where its wrapper does harm (vision, speech).
        head: Names of the modules that are trained in full and saved with the adapter.
        total_steps: Optimizer steps of the run; AdaLoRA plans its ranks by it.
        readers: Makes LoRA layers train by our own function; None: by peft's.

    Returns:
        The adapted model, in training mode if the base was.

    Raises:
        InputError: The recipe names no module of the base, or asks for what peft or this base cannot do.
    """
    config = build_config(peft_config, task_type=task_type, head=head, total_steps=total_steps)
    check_head(config, model, head=head)
    if config.is_prompt_learning:
        set_prompt_sizes(config, model)
    elif "target_modules" in vars(config) and config.peft_type != "TRAINABLE_TOKENS":
        matched = set_targets(config, model)
        check_initialisation(config, model, matched=matched)
    try:
        with _our_layers(config, readers):
            adapted: PeftModel = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"peft_config ({config.peft_type.value}): peft {peft.__version__} cannot put it on this base: {error}"
        ) from error
    _keep_known_modules(adapted)
    show_geometry(adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in _adapter_parameters(adapted)):
        raise InputError(
            f"peft_config ({config.peft_type.value}): peft {peft.__version__} found no module here that "
            "this method can adapt. Choose another method, LORA for one."
        )
    if changes_base(config):
        remember_initial(adapted)
    return adapted


@dataclass(frozen=True)
class TrainableReport:
    """What trains and what does not.

    Attributes:
        trainable: Parameters that get gradients.
        total: All parameters; 4-bit weights counted as what they stand for.
        adapter: Trainable parameters outside the head.
        head: Trainable parameters of the head.
        modules: Modules that carry an adapter.
        by_type: For each kind of module (`query`, `output.dense`, `head: classifier`) how many there are, and
            their trainable parameters.
    """

    trainable: int
    total: int
    adapter: int
    head: int
    modules: int
    by_type: Mapping[str, tuple[int, int]]

    def line(self) -> str:
        """`trainable 0.30 M of 22.9 M parameters, 1.31 % (adapter 0.30 M in 36 modules, head 770)`."""
        share = 100 * self.trainable / self.total
        return (
            f"trainable {_short(self.trainable)} of {_short(self.total)} parameters, {share:.2f} % "
            f"(adapter {_short(self.adapter)} in {self.modules} modules, head {_short(self.head)})"
        )

    def rows(self) -> list[tuple[str, int, int]]:
        """`(kind of module, modules, trainable parameters)` for a table, largest first."""
        rows = [(kind, count, parameters) for kind, (count, parameters) in self.by_type.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0]))

    def table_lines(self) -> list[str]:
        """The rows as aligned text, `attention.self.query   6 modules   36,864 parameters`."""
        rows = self.rows()
        wide = max((len(kind) for kind, _, _ in rows), default=0)
        return [f"{kind:<{wide}} {count:>4} modules {parameters:>12,} parameters" for kind, count, parameters in rows]


def trainable_report(model: PeftModel) -> TrainableReport:
    """Counts the parameters of an adapted model.

    Args:
        model: What `attach` returned.

    Returns:
        The counts; a parameter that several modules share counts once.
    """
    heads = head_wrappers(model)
    adapter = head = 0
    counts: dict[str, int] = defaultdict(int)
    owners: dict[str, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name.removeprefix("base_model.").removeprefix("model.")
        owner = next((one for one in heads if plain.startswith(f"{one}.")), None)
        if owner is None:
            adapter += parameter.numel()
            owner = _owner(plain)
            kind = _kind(owner)
        else:
            head += parameter.numel()
            kind = f"head: {owner.rpartition('.')[2]}"
        counts[kind] += parameter.numel()
        owners[kind].add(owner)
    total = sum(_count(parameter) for parameter in model.parameters())
    total -= sum(_count(parameter) for one in heads.values() for parameter in one.original_module.parameters())
    return TrainableReport(
        trainable=adapter + head,
        total=total,
        adapter=adapter,
        head=head,
        modules=sum(isinstance(module, BaseTunerLayer) for module in model.modules()),
        by_type={kind: (len(owners[kind]), count) for kind, count in counts.items()},
    )


def _our_layers(config: Any, readers: Readers | None) -> AbstractContextManager[None]:
    """Makes peft take our layers within the context; without readers not a file of them is needed."""
    if readers is None:
        return nullcontext()
    from lora_ft.adapters.lean_lora import lean_layers

    return lean_layers(config, readers)


def _keep_known_modules(model: PeftModel) -> None:
    """Drops the `classifier` and `score` that peft adds to `modules_to_save` where the base has none."""
    config = model.peft_config["default"]
    if vars(config).get("modules_to_save"):
        names = head_wrappers(model)
        wanted = dict.fromkeys(config.modules_to_save)
        config.modules_to_save = [one for one in wanted if any(inside(name, [one]) for name in names)]


def _adapter_parameters(model: PeftModel) -> Iterator[nn.Parameter]:
    """All parameters outside the head."""
    heads = [id(parameter) for module in head_wrappers(model).values() for parameter in module.parameters()]
    return (parameter for parameter in model.parameters() if id(parameter) not in heads)


def _owner(name: str) -> str:
    """The adapted module that a trainable parameter belongs to: the part before peft's own names."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part == "default" and index > 0:
            return ".".join(parts[: index - 1]) or parts[0]
    return ".".join(parts[:-1])


def _kind(owner: str) -> str:
    """`bert.encoder.layer.1.attention.self.query` -> `attention.self.query`."""
    parts = owner.split(".")
    last_number = max((index for index, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last_number + 1 :]) or "shared"


def _count(parameter: nn.Parameter) -> int:
    """Elements of a parameter; a packed 4-bit weight counts as the matrix it stands for."""
    if type(parameter).__name__ == "Params4bit":
        return math.prod(parameter.quant_state.shape)  # type: ignore[attr-defined]
    return parameter.numel()


def _short(count: int) -> str:
    """770 -> `770`, 295_296 -> `0.30 M`, 102_267_648 -> `102 M`."""
    if count < 100_000:
        return f"{count:,}"
    millions = count / 1e6
    return f"{millions:.2f} M" if millions < 10 else f"{millions:.1f} M" if millions < 100 else f"{millions:.0f} M"
