"""The processes of a run: that they have a device each, the same rows and weights, and chance of their own."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from lora_ft.assemble.encode import without_media
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.feature_cache import rows_digest
from lora_ft.data.shared import forget
from lora_ft.errors import GateError, InputError, RunError
from lora_ft.train.told import told_by_each
from lora_ft.train.trainer import AdapterTrainer

SAMPLED_ROWS = 64
SAMPLED_VALUES = 64
"""Of each frozen tensor: another base, another revision or another precision shows in the first of them."""
REMEDIES = {
    "rows": "The data files, or what augmentation draws from, are not the same on all machines: copy them again, or "
    "put them where all machines read them",
    "adapter": "They must start from the same weights: use the same versions of torch, transformers and peft",
    "base": "Fetch the same revision of the base on all machines (model.revision), and use the same versions",
}
"""What a process may have that others have not, in the order in which it is told, and what to do."""


@dataclass(frozen=True)
class Held:
    """What a process has.

    Attributes:
        rank: Its number.
        host: Its machine.
        digests: Of each of `REMEDIES`.
    """

    rank: int
    host: str
    digests: Mapping[str, str]


def settle(trainer: AdapterTrainer, *, shared_dir: Path | None) -> None:
    """What all processes do together when the model is built, and before any learns something.

    Args:
        trainer: The trainer.
        shared_dir: What they had in common while rows were prepared; it is removed.
    """
    check_alike(trainer)  # by then all have read what is there
    forget(shared_dir)
    seed_of_its_own(trainer.args)


def check_batches(arguments: transformers.TrainingArguments) -> None:
    """Refuses settings by which several processes would learn other batches than one.

    Raises:
        InputError: accelerate is to cut batches into pieces, or to hand them out.
    """
    config = arguments.accelerator_config
    named = [name for name in ("split_batches", "dispatch_batches") if bool(vars(config)[name])]
    if arguments.world_size > 1 and named:
        raise InputError(
            f"training_args.accelerator_config.{named[0]}: true: on {arguments.world_size} processes the batches would "
            "be others than on one. Leave it out: per_device_train_batch_size is what each process gets"
        )


def check_devices(arguments: transformers.TrainingArguments) -> None:
    """Stops a run whose processes share an accelerator; on CPUs there is nothing to share.

    accelerate (1.15) counts a process's number round its machine's GPUs, and NCCL fails later with a message of its
    own.

    Raises:
        GateError: Two processes have one device.
    """
    if arguments.world_size == 1 or arguments.device.type != "cuda":
        return
    device = str(torch.cuda.get_device_properties(arguments.device).uuid)
    told = shared_device(told_by_all((socket.gethostname(), device)), visible=torch.cuda.device_count())
    if told is not None:
        raise GateError(told, gate="world-size")


def told_by_all(mine: tuple[str, str]) -> list[tuple[str, str]]:
    """What each process says, in their order, by the store at which they met: NCCL would hang or fail here already.

    Args:
        mine: What this one says.
    """
    store = torch.distributed.distributed_c10d._get_default_store()  # torch (2.13) has no public name for it
    store.set(f"lora_ft/device/{torch.distributed.get_rank()}", json.dumps(mine))
    everybody = range(torch.distributed.get_world_size())
    host_and_device = [json.loads(store.get(f"lora_ft/device/{rank}")) for rank in everybody]
    return [(host, device) for host, device in host_and_device]


def shared_device(seen: Sequence[tuple[str, str]], *, visible: int) -> str | None:
    """What is wrong if two processes have one device; None if each has its own.

    Args:
        seen: Of each process, in their order, its host and its device.
        visible: GPUs that this process sees.
    """
    for rank, place in enumerate(seen):
        first = seen.index(place)
        if first < rank:
            here = sum(host == place[0] for host, _ in seen)
            return (
                f"devices: processes {first} and {rank} share one GPU of {place[0]} ({here} processes there, {visible} "
                f"{'GPU' if visible == 1 else 'GPUs'} visible to each). Start one process a GPU: fewer --num_processes "
                "(accelerate), --nproc_per_node (torchrun) or --ntasks-per-node (Slurm), or show each its own by "
                "CUDA_VISIBLE_DEVICES"
            )
    return None


def check_alike(trainer: AdapterTrainer) -> None:
    """Stops a run whose processes read other rows or start from other weights than the first.

    DDP would give all of them the weights of process 0, base included, and say nothing. What is cut into shards when
    it is loaded cannot be compared.

    Raises:
        RunError: Some differ; names the first of them.
    """
    if trainer.args.world_size == 1:
        return
    digests = {"rows": data_digest(trainer.prepared)}
    if not _loads_in_pieces(trainer):
        named = list(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
        digests["adapter"] = weights_digest((name, one) for name, one in named if one.requires_grad)
        digests["base"] = weights_digest(((n, p) for n, p in named if not p.requires_grad), values=SAMPLED_VALUES)
    mine = Held(int(trainer.args.process_index), socket.gethostname(), digests)
    told = difference(told_by_each(mine, world_size=trainer.args.world_size))
    if told is not None:
        raise RunError(told)


def difference(seen: Sequence[Held]) -> str | None:
    """What a process has that the first has not; None if all have the same.

    Args:
        seen: What each process has, in their order.
    """
    first, *others = seen
    for what, remedy in REMEDIES.items():
        wrong = [one for one in others if one.digests.get(what) != first.digests.get(what)]
        if wrong:
            which = ", ".join(f"{one.rank} on {one.host}" for one in wrong)
            return (
                f"processes: the {what} of process {which} {'is' if what != 'rows' else 'are'} not that of process "
                f"{first.rank} on {first.host}. {remedy}"
            )
    return None


def seed_of_its_own(arguments: transformers.TrainingArguments) -> None:
    """Gives each process but the first chance of its own: all would drop out the same places otherwise.

    To be called when the model is built, for which all need the same.
    """
    if arguments.process_index:
        mixed = np.random.SeedSequence((int(arguments.seed), int(arguments.process_index))).generate_state(1)
        transformers.set_seed(int(mixed[0]))


def data_digest(prepared: Prepared) -> str:
    """SHA-256 over the lengths of all features and the content of some rows, images and sounds not read."""
    digest = hashlib.sha256()
    for split, features in prepared.features.items():
        digest.update(f"{split} {len(features)}\n".encode())
        digest.update(np.asarray(features["length"][:], dtype=np.int64).tobytes())
        rows: datasets.Dataset = without_media(prepared.rows[split], prepared.task)
        if rows.column_names:
            taken = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(np.int64))
            digest.update(rows_digest(rows.select(taken.tolist())).encode())
    return digest.hexdigest()


def weights_digest(named: Iterable[tuple[str, torch.Tensor]], *, values: int | None = None) -> str:
    """SHA-256 over names, shapes, types and values of tensors.

    Args:
        named: The tensors.
        values: How many values of each, evenly spread; None: all.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        flat = tensor.detach().flatten()
        if values is not None:
            flat = flat[:: max(1, len(flat) // values)][:values]
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _loads_in_pieces(trainer: AdapterTrainer) -> bool:
    """Whether a process has only a piece of the weights, or none yet: ZeRO-3, and FSDP where process 0 loads alone."""
    state = trainer.accelerator.state
    zero_3 = state.deepspeed_plugin is not None and state.deepspeed_plugin.zero_stage == 3
    return bool(zero_3 or (trainer.is_fsdp_enabled and state.fsdp_plugin.cpu_ram_efficient_loading))
