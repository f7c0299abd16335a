"""Which configuration a recipe gets on which machine, and how large a base is thought to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ft.errors import InputError
from lora_ft.launch.choice import choose
from lora_ft.launch.machine import Gpu, Machine, Place
from lora_ft.launch.weights import weight_bytes
from lora_ft.recipe.schema import Recipe
from tests.toy import read, write_recipe

GB = 10**9
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
ALL_BF16 = {**NF4, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Recipe:
    cpu = read(write_recipe(tmp_path_factory.mktemp("choice"), tiny_bert))
    return replace(cpu, training_args={key: value for key, value in cpu.training_args.items() if key != "use_cpu"})


def machine(gpus: int, *, nodes: int = 1, gigabytes: int | None = 48) -> Machine:
    gpu = Gpu("NVIDIA L40S", None if gigabytes is None else gigabytes * GB)
    place = Place(nodes=nodes, rank=0, head="h", port=1) if nodes > 1 else Place()
    return Machine(gpus=(gpu,) * gpus, cores=8, place=place)


@pytest.mark.parametrize(
    ("gpus", "nodes", "base", "configuration", "processes"),
    [
        (1, 1, 2 * GB, "one_gpu", 1),
        (8, 1, 2 * GB, "ddp", 8),
        (8, 1, None, "ddp", 8),
        (8, 1, 60 * GB, "fsdp2", 8),
        (1, 1, 60 * GB, "one_gpu", 1),
        (8, 2, 2 * GB, "multi_node", 8),
        (1, 2, 60 * GB, "fsdp2", 1),
        (0, 1, None, "cpu", 1),
        (0, 3, None, "cpu_nodes", 1),
    ],
)
def test_the_machine_and_the_size_of_the_base_decide(
    recipe: Recipe, gpus: int, nodes: int, base: int | None, configuration: str, processes: int
) -> None:
    choice = choose(recipe, machine(gpus, nodes=nodes), base_bytes=base)
    assert (choice.configuration, choice.processes) == (configuration, processes)


def test_the_reason_has_the_numbers(recipe: Recipe) -> None:
    size = "the base takes about 60.0 GB, more than 80% of a GPU's 48.0 GB"
    assert choose(recipe, machine(8), base_bytes=60 * GB).why == (
        f"8 GPUs (NVIDIA L40S); {size}: it is sharded over all of them"
    )
    lonely = choose(recipe, machine(1), base_bytes=60 * GB).why
    assert "expect too little memory; quantise it, or take more GPUs" in lonely
    assert "cannot be seen" in choose(recipe, machine(2), base_bytes=None).why
    assert "cannot be seen" in choose(recipe, machine(2, gigabytes=None), base_bytes=60 * GB).why


def test_on_a_cpu_one_process_has_all_cores_and_more_share_them(recipe: Recipe) -> None:
    one = choose(recipe, machine(0), base_bytes=None)
    assert (one.processes, one.threads) == (1, 8)
    assert "one process uses all cores" in one.why
    three = choose(recipe, machine(0), base_bytes=None, processes=3)
    assert (three.configuration, three.processes, three.threads) == ("cpu", 3, 2)
    on_gpus = replace(recipe, training_args={**recipe.training_args, "use_cpu": True})
    assert choose(on_gpus, machine(4), base_bytes=GB).configuration == "cpu"


def test_a_gpu_is_not_shared_by_processes(recipe: Recipe) -> None:
    assert choose(recipe, machine(4), base_bytes=GB, processes=2).why.startswith("2 of 4 GPUs (NVIDIA L40S)")
    with pytest.raises(InputError, match=r"--nproc 5: this machine has 4 GPUs \(NVIDIA L40S\).*at most 4"):
        choose(recipe, machine(4), base_bytes=GB, processes=5)


def test_a_quantised_base_is_sharded_only_in_a_type_that_fsdp_can_shard(recipe: Recipe) -> None:
    with pytest.raises(InputError, match=r"bnb_4bit_quant_storage = uint8.*bnb_4bit_quant_storage=bfloat16"):
        choose(replace(recipe, quantization_config=NF4), machine(2), base_bytes=60 * GB)
    with pytest.raises(InputError, match=r"load_in_8bit = true.*cannot be sharded"):
        choose(replace(recipe, quantization_config={"load_in_8bit": True}), machine(2), base_bytes=60 * GB)
    assert choose(replace(recipe, quantization_config=ALL_BF16), machine(2), base_bytes=60 * GB).configuration == (
        "fsdp2_qlora"
    )
    assert choose(replace(recipe, quantization_config=NF4), machine(2), base_bytes=GB).configuration == "ddp"


def test_a_recipe_that_shards_by_itself_is_left_alone(recipe: Recipe) -> None:
    own = replace(recipe, training_args={**recipe.training_args, "deepspeed": "ds.json"})
    choice = choose(own, machine(2), base_bytes=60 * GB)
    assert choice.configuration == "ddp"
    assert "training_args.deepspeed of the recipe shards" in choice.why


def write_base(folder: Path, shapes: dict[str, tuple[str, list[int]]]) -> Path:
    """A safetensors file with a header and no tensors."""
    header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


def sized(recipe: Recipe, name: str, environment: dict[str, str] | None = None, **sections: Any) -> int | None:
    dtype = sections.pop("dtype", None)
    model = replace(recipe.model, pretrained_model_name_or_path=name, dtype=dtype)
    return weight_bytes(replace(recipe, model=model, **sections), environment or {})


def test_the_size_of_a_base_is_read_from_the_headers_of_its_files(recipe: Recipe, tmp_path: Path) -> None:
    layers = {"model.embed_tokens.weight": ("F32", [1000, 100]), "layer.0.q.weight": ("F32", [100, 100])}
    base = str(write_base(tmp_path / "base", {**layers, "layer.0.norm": ("F32", [100])}))
    assert sized(recipe, base) == 4 * 110_100
    assert sized(recipe, base, dtype="bfloat16") == 2 * 110_100
    assert sized(recipe, base, quantization_config=NF4) == 2 * 100_100 + 10_000 * 4.5 / 8
    assert sized(recipe, base, quantization_config={"load_in_8bit": True}) == 2 * 100_100 + 10_000
    assert sized(recipe, str(tmp_path / "nowhere")) is None


def test_a_base_is_found_in_the_hubs_cache(recipe: Recipe, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--org--base"
    write_base(cached / "snapshots" / "abc", {"w": ("BF16", [10, 10])})
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc", encoding="utf-8")
    for environment in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        assert sized(recipe, "org/base", environment) == 200
    assert sized(recipe, "org/other", {"HF_HOME": str(tmp_path)}) is None
