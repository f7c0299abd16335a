"""What processes must have in common, and what each must have for itself; told with process and machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_ft.errors import InputError
from lora_ft.train.world import Held, check_batches, difference, shared_device, weights_digest

ALIKE = {"rows": "r", "adapter": "a", "base": "b"}


def seen(rank: int, host: str, **other: str) -> Held:
    return Held(rank, host, {**ALIKE, **other})


def test_processes_that_have_the_same_have_no_difference() -> None:
    assert difference([seen(0, "a"), seen(1, "b")]) is None
    assert difference([Held(0, "a", {"rows": "r"}), Held(1, "b", {"rows": "r"})]) is None


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("rows", "the rows of process 2 on b, 3 on b are not that of process 0 on a. The data files, or what"),
        ("adapter", "the adapter of process 2 on b, 3 on b is not that of process 0 on a. They must start from the"),
        ("base", "the base of process 2 on b, 3 on b is not that of process 0 on a. Fetch the same revision"),
    ],
)
def test_a_difference_names_processes_and_machines(what: str, told: str) -> None:
    message = difference([seen(0, "a"), seen(1, "a"), seen(2, "b", **{what: "x"}), seen(3, "b", **{what: "y"})])
    assert message is not None
    assert told in message


def test_two_processes_on_one_gpu_are_an_error_that_says_how_many_there_are() -> None:
    assert shared_device([("a", "gpu0"), ("a", "gpu1"), ("b", "gpu0"), ("b", "gpu1")], visible=2) is None
    told = shared_device([("a", "gpu0"), ("a", "gpu1"), ("a", "gpu0")], visible=2)
    assert told is not None
    assert told.startswith("devices: processes 0 and 2 share one GPU of a (3 processes there, 2 GPUs visible to each).")
    told = shared_device([("a", "gpu0"), ("a", "gpu0")], visible=1)
    assert told is not None
    assert "(2 processes there, 1 GPU visible to each)" in told


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_batches_that_accelerate_would_cut_are_refused_on_several_processes(name: str) -> None:
    def arguments(world_size: int, **given: Any) -> Any:
        config = SimpleNamespace(**{"split_batches": False, "dispatch_batches": None, **given})
        return SimpleNamespace(world_size=world_size, accelerator_config=config)

    check_batches(arguments(2))
    check_batches(arguments(1, **{name: True}))
    with pytest.raises(InputError, match=f"accelerator_config.{name}: true: on 2 processes"):
        check_batches(arguments(2, **{name: True}))


def test_a_digest_changes_with_names_shapes_types_and_values() -> None:
    plain = torch.arange(6.0)
    others = [
        ("b", plain), ("a", plain.view(2, 3)), ("a", plain.to(torch.bfloat16)), ("a", plain + 1), ("a", plain.double()),
    ]  # fmt: skip
    found = {weights_digest([one]) for one in [("a", plain), *others]}
    assert len(found) == 6
    assert weights_digest([("a", plain.clone())]) in found
    assert weights_digest([("a", torch.tensor(1.0))]) != weights_digest([("a", torch.tensor(2.0))])


def test_a_sampled_digest_sees_values_all_over_a_tensor() -> None:
    plain = torch.zeros(64 * 100)
    changed = plain.clone()
    changed[63 * 100] = 1
    assert weights_digest([("a", plain)], values=64) != weights_digest([("a", changed)], values=64)
    assert weights_digest([("a", torch.zeros(3))], values=64) != weights_digest([("a", torch.ones(3))], values=64)
