"""Hidden states come back as they were put in, from memory and from a file; a damaged file is made anew."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from lora_ft.models.hidden_rows import HiddenFile, HiddenFolder, HiddenRows, mapped, starts_of

LENGTHS = [3, 1, 4]
WIDTH = 2


def rows(dtype: torch.dtype = torch.float32) -> HiddenRows:
    return HiddenRows(torch.arange(1, 17).view(8, WIDTH).to(dtype), LENGTHS)


def written(folder: HiddenFolder, key: str, kept: HiddenRows, *, keep: tuple[str, ...] = ()) -> Path:
    file = folder.begin(kept.bytes)
    stream = HiddenFile(file, starts_of(LENGTHS), token_bytes=WIDTH * kept.values.itemsize)
    for number in (2, 0, 1):
        stream.put(number, kept.row(number))
    stream.close()
    folder.end(file, key, keep=keep)
    return folder.folder / key / "hidden.bin"


def padded_slowly(kept: HiddenRows, numbers: list[int], tokens: int) -> torch.Tensor:
    found = torch.zeros(len(numbers), tokens, WIDTH, dtype=kept.values.dtype)
    for place, number in enumerate(numbers):
        for token in range(LENGTHS[number]):
            found[place, token] = kept.values[sum(LENGTHS[:number]) + token]
    return found


def test_rows_are_padded_with_zeros() -> None:
    assert torch.equal(rows().padded([2, 0, 2], 5), padded_slowly(rows(), [2, 0, 2], 5))
    assert torch.equal(rows().select([2, 1]).padded([1, 0], 4), padded_slowly(rows(), [1, 2], 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_gives_back_what_was_put_in_whatever_the_order(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = HiddenFolder(tmp_path / "made", most_bytes=1_000)
    file = written(folder, "a", rows(dtype))
    assert folder.is_whole("a")
    found = folder.read("a", LENGTHS, width=WIDTH, dtype=dtype)
    assert found is not None
    assert torch.equal(found.values, rows(dtype).values)
    assert folder.folder.stat().st_mode & 0o077 == file.stat().st_mode & 0o077 == 0
    assert mapped(file, [3, 1], width=WIDTH, dtype=dtype) is None
    assert [one.name for one in folder.folder.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["changed", "short", "no record"])
def test_a_damaged_entry_is_removed_with_one_line(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = HiddenFolder(tmp_path, most_bytes=1_000)
    file = written(folder, "a", rows())
    if damage == "no record":
        (tmp_path / "a" / "entry.json").write_text("{", encoding="utf-8")
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] if damage == "short" else b"\1" + content[1:])
    with caplog.at_level(logging.WARNING, logger="lora_ft"):
        assert not folder.is_whole("a")
    assert [record.message for record in caplog.records] == [f"prefix cache: {tmp_path / 'a'}: damaged, made anew"]
    assert not (tmp_path / "a").exists()
    assert not folder.is_whole("a")


def test_the_least_recently_used_go_first_and_those_in_use_stay(tmp_path: Path) -> None:
    folder = HiddenFolder(tmp_path, most_bytes=150)  # an entry has 64
    for age, key in enumerate(("a", "b")):
        written(folder, key, rows())
        os.utime(tmp_path / key / "entry.json", (age + 1.0, age + 1.0))
    assert folder.is_whole("a")  # looked at last
    written(folder, "c", rows())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "c"]
    written(folder, "d", rows(), keep=("a", "c"))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "c", "d"]


def test_no_entry_is_larger_than_all_may_be(tmp_path: Path) -> None:
    assert not HiddenFolder(tmp_path, most_bytes=63).has_room(64)
    assert HiddenFolder(tmp_path, most_bytes=64).has_room(64)
    assert not HiddenFolder(tmp_path, most_bytes=1 << 62).has_room(1 << 61)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert not HiddenFolder(tmp_path / "file", most_bytes=64).has_room(64)


def test_what_another_run_made_first_stays(tmp_path: Path) -> None:
    folder = HiddenFolder(tmp_path, most_bytes=1_000)
    first = written(folder, "a", rows()).stat().st_ino
    assert written(folder, "a", rows()).stat().st_ino == first
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
