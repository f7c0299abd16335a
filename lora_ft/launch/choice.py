"""Recipe and machine -> the accelerate configuration that fits both, and one line of why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_ft.errors import InputError
from lora_ft.launch.machine import Gpu, Machine
from lora_ft.launch.weights import quantised_bits
from lora_ft.recipe.schema import Recipe

BASE_SHARE = 0.8
"""Of a GPU's memory the base may take so much; the rest is for adapter, optimizer, activations and CUDA itself."""
DEFAULT_COMPUTE = "bfloat16"


@dataclass(frozen=True)
class Choice:
    """How a run is started.

    Attributes:
        configuration: The name of one of `launch/accelerate/`, without its suffix, or the user's own file.
        processes: On each machine.
        threads: CPU threads of each process; None: as accelerate thinks.
        why: One line for the user.
    """

    configuration: str | Path
    processes: int
    threads: int | None
    why: str


def choose(
    recipe: Recipe,
    machine: Machine,
    *,
    base_bytes: int | None,
    processes: int | None = None,
    configuration: Path | None = None,
) -> Choice:
    """Picks the configuration.

    Args:
        recipe: The recipe.
        machine: What there is.
        base_bytes: What the base takes on a device; None: not known.
        processes: On each machine, if the user says so.
        configuration: The user's own file.

    Returns:
        The choice.

    Raises:
        InputError: More processes than GPUs, or a base that fits no GPU and cannot be sharded as the recipe has it.
    """
    wants_cpu = bool(recipe.training_args.get("use_cpu"))
    if configuration is not None:
        count = processes or (1 if wants_cpu else max(1, len(machine.gpus)))
        return Choice(configuration, count, None, f"{configuration} as given, {_processes(count)} on each machine")
    if wants_cpu or not machine.gpus:
        return _on_cpu(machine, processes, wanted=wants_cpu)
    gpus = machine.gpus
    if processes is not None and processes > len(gpus):
        raise InputError(
            f"launch: --nproc {processes}: this machine has {_gpus(gpus)} to use, and each process wants its own. "
            f"Give at most {len(gpus)}, or training_args.use_cpu=true"
        )
    count = processes or len(gpus)
    nodes = machine.place.nodes
    where = f"{count} of {_gpus(gpus)}" if count < len(gpus) else _gpus(gpus)
    where += f" on each of {nodes} machines" if nodes > 1 else ""
    fits, size = _fits(gpus, base_bytes)
    own = next((key for key in ("deepspeed", "fsdp") if recipe.training_args.get(key)), None)
    if own is not None:
        return Choice(_replicated(count, nodes), count, None, f"{where}; training_args.{own} of the recipe shards")
    if fits or (count == 1 and nodes == 1):
        told = size if fits else f"{size}: expect too little memory; quantise it, or take more GPUs"
        return Choice(_replicated(count, nodes), count, None, f"{where}; {told}")
    return Choice(_sharded(recipe, size), count, None, f"{where}; {size}: it is sharded over all of them")


def _on_cpu(machine: Machine, processes: int | None, *, wanted: bool) -> Choice:
    """One process with all cores, unless more are asked for."""
    count = processes or 1
    why = "training_args.use_cpu" if wanted else f"no GPU to use ({machine.remark})" if machine.remark else "no GPU"
    cores = f"{machine.cores} CPU core{'s' * (machine.cores != 1)}"
    each = f" on each of {machine.place.nodes} machines" if machine.place.nodes > 1 else ""
    told = f"{why}: {_processes(count)} on {cores}{each}"
    if processes is None:
        told += "; one process uses all cores by its threads and holds the base once (more with --nproc)"
    configuration = "cpu" if machine.place.nodes == 1 else "cpu_nodes"
    return Choice(configuration, count, max(1, machine.cores // count), told)


def _fits(gpus: tuple[Gpu, ...], base_bytes: int | None) -> tuple[bool, str]:
    """Whether the base fits the smallest GPU as far as that is known, and how large both are."""
    known = [gpu.bytes for gpu in gpus if gpu.bytes is not None]
    if base_bytes is None:
        return True, "how large the base is cannot be seen here; taken as fitting each GPU"
    size = f"the base takes about {_gb(base_bytes)}"
    if not known:
        return True, f"{size}; the memory of the GPUs cannot be seen, taken as enough"
    fits = base_bytes <= BASE_SHARE * min(known)
    return fits, f"{size}, {'less' if fits else 'more'} than {BASE_SHARE:.0%} of a GPU's {_gb(min(known))}"


def _replicated(count: int, nodes: int) -> str:
    return "multi_node" if nodes > 1 else "ddp" if count > 1 else "one_gpu"


def _sharded(recipe: Recipe, size: str) -> str:
    """FSDP2, in the form that the quantisation allows.

    Raises:
        InputError: The quantised weights cannot be sharded as the recipe stores them.
    """
    settings = recipe.quantization_config or {}
    bits = quantised_bits(settings)
    if bits is None:
        return "fsdp2"
    if bits == 8:
        raise InputError(
            f"quantization_config.load_in_8bit = true: {size}, and an 8-bit base cannot be sharded. Expected one that "
            "fits a GPU, or four bits: quantization_config.load_in_8bit=false quantization_config.load_in_4bit=true"
        )
    compute = str(settings.get("bnb_4bit_compute_dtype") or DEFAULT_COMPUTE).removeprefix("torch.")
    storage = str(settings.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
    if storage != compute:
        raise InputError(
            f"quantization_config.bnb_4bit_quant_storage = {storage}: {size}, so it has to be sharded, and FSDP shards "
            f"only weights that are stored in the type in which they are computed. Add to the command: "
            f"quantization_config.bnb_4bit_quant_storage={compute} quantization_config.bnb_4bit_compute_dtype={compute}"
        )
    return "fsdp2_qlora"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _gpus(gpus: tuple[Gpu, ...]) -> str:
    names = sorted({gpu.name for gpu in gpus})
    return f"{len(gpus)} GPU{'s' * (len(gpus) != 1)} ({', '.join(names)})"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
