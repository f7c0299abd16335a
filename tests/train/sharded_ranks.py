"""Ranks that cut a model by FSDP2 on CPUs.

torch does it there, over gloo; accelerate (1.15) takes FSDP for accelerators alone, and on CPUs says nothing and cuts
nothing. So its state is told here what `AcceleratorState.__init__` tells it where there are GPUs; all else is as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from tests.train.ranks import main

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip
"""What `accelerate launch` makes of launch/accelerate/fsdp2.yaml."""

whole = AcceleratorState.__init__


def cut_on_cpus(state: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **others: Any) -> None:
    """What follows in accelerate's own `__init__` on several GPUs."""
    whole(state, *arguments, fsdp_plugin=fsdp_plugin, **others)
    if fsdp_plugin is None:
        return
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state._mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(state._mixed_precision)
    state.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = cut_on_cpus
    main(Path(sys.argv[1]))
