"""The configurations of launch/accelerate as the installed accelerate, torch and (where it is) DeepSpeed read them."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import OffloadPolicy

FOLDER = Path(__file__).parents[2] / "launch" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
HARDWARE = {
    "compute_environment", "distributed_type", "use_cpu", "num_machines", "machine_rank", "num_processes",
    "mixed_precision", "main_process_port", "rdzv_backend", "same_network", "main_training_function", "fsdp_config",
    "deepspeed_config",
}  # fmt: skip
OF_THE_RECIPE = ("gradient_accumulation", "gradient_clipping", "activation_checkpointing", "optimizer", "dynamo")
WORDS = ["-m", "lora_ft", "train", "my.yaml", "training_args.learning_rate=3e-4", "--auto-resume"]


def launched(file: Path, *words: str) -> argparse.Namespace:
    """What accelerate makes of a configuration, as far as the processes."""
    arguments, defaults, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), *words, *WORDS])
    )
    fields = list(defaults.deepspeed_config)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)  # as accelerate's launch_command does
    return arguments


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_multi_gpu_env
    made = prepare(arguments)
    return made[1] if isinstance(made, tuple) else made


def surrounded(monkeypatch: pytest.MonkeyPatch, arguments: argparse.Namespace) -> None:
    """Puts this process where one of the launched would be."""
    for name, value in environment_of(arguments).items():
        monkeypatch.setenv(name, value)


def content(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_there_is_one_for_each_place() -> None:
    assert {file.stem for file in FILES} == {
        "cpu", "cpu_nodes", "one_gpu", "ddp", "multi_node", "fsdp2", "fsdp2_qlora", "zero2", "zero3"
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_short_says_what_for_and_names_hardware_only(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120
    given = content(file)
    assert set(given) <= HARDWARE
    assert given["mixed_precision"] == "no", "precision is the recipe's"
    inner = {**given.get("fsdp_config", {}), **given.get("deepspeed_config", {})}
    assert not [key for key in inner if any(word in key and "offload" not in key for word in OF_THE_RECIPE)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key_and_hands_recipe_and_overrides_on(file: Path) -> None:
    assert isinstance(load_config_from_file(str(file)), ClusterConfig), "an unknown key at the top is an error there"
    known = vars(launch_command_parser().parse_args(["x.py"]))
    given = content(file)
    for key in (*given.get("fsdp_config", {}), *given.get("deepspeed_config", {})):
        assert key in known, f"{key}: accelerate sets it and reads it nowhere"
    arguments = launched(file)
    assert arguments.training_script_args == WORDS[2:]
    assert arguments.num_processes == given["num_processes"]
    assert arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed, "torch's agent: it hands SIGTERM on"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_numbers_on_the_command_line_win(file: Path) -> None:
    arguments = launched(
        file, "--num_processes", "6", "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "node7",
        "--main_process_port", "15001",
    )  # fmt: skip
    environment_of(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "3", 1)
    assert (arguments.same_network and arguments.master_addr) in (False, "node7")
    assert "rdzv_endpoint" not in vars(arguments) or arguments.rdzv_endpoint in ("", "node7:15001")


@pytest.mark.parametrize("name", ["cpu", "cpu_nodes"])
def test_threads_follow_the_processes_of_one_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    arguments = launched(FOLDER / f"{name}.yaml", "--num_cpu_threads_per_process", "3")
    assert arguments.use_cpu
    assert environment_of(argparse.Namespace(**{**vars(arguments), "machine_rank": 1}))["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_qlora"])
def test_torch_takes_the_settings_of_fsdp2(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    surrounded(monkeypatch, launched(FOLDER / f"{name}.yaml"))
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert type(plugin.cpu_offload) is OffloadPolicy, "no offloading"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed builds itself: not in `dev`")
@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeeds_own_schema_takes_the_settings_of_zero(
    name: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    surrounded(monkeypatch, launched(FOLDER / f"{name}.yaml"))
    settings = DeepSpeedPlugin().deepspeed_config
    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    assert int(zero.stage) == stage
    assert zero.gather_16bit_weights_on_model_save is False
    assert settings["gradient_accumulation_steps"] == "auto", "the recipe's"
