"""Each adapter of a pool is measured on its own rows as it would be alone, and the router on all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.pool_folder import PoolFolder, read_pool
from lora_ft.adapters.verify import read_manifest
from lora_ft.assemble.addressed import read_addresses
from lora_ft.assemble.pooled import PooledAdapters, open_pool
from lora_ft.assemble.router import make_router
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import DataError
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.evaluate.compare_many import compare_many, rows_of_addresses, rows_of_recipes
from tests.pools import LABELS, TinyPool, domain_rows
from tests.toy import read


def manifests_of(folder: PoolFolder) -> dict[str, Manifest]:
    return {name: read_manifest(place) for name, place in folder.folders.items()}


@pytest.fixture(scope="module")
def pooled(tiny_pool: TinyPool) -> PooledAdapters:
    return open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True))


def test_each_adapter_scores_as_it_does_alone(pooled: PooledAdapters, tiny_pool: TinyPool) -> None:
    folder = read_pool(tiny_pool.root)
    recipes = {name: read(place / "recipe.yaml") for name, place in folder.folders.items()}
    manifests = manifests_of(folder)
    rows = rows_of_recipes(pooled, manifests, recipes, split=None)
    together = compare_many(pooled, rows, manifests, router=make_router(pooled), resamples=20, batch_size=7)
    for name in LABELS:
        opened = open_adapter(tiny_pool.adapter(name), OpenOptions(offline=True))
        split, table = rows_of_recipe(opened, recipes[name], None)
        alone = compare(opened, table, split=split, resamples=20)
        one = together.domains[name]
        assert one.split == split == "validation"
        assert one.metrics == pytest.approx(alone.adapter)
        assert one.intervals == alone.intervals
        assert one.base == pytest.approx(alone.base)
        assert [answer["label"] for answer in one.predictions] == [answer["label"] for answer in alone.predictions]
    accuracies = [one.metrics["accuracy"] for one in together.domains.values()]
    assert together.average("metrics")["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert together.without_centroid == ("pans",)
    assert together.domains["pans"].sent_to("pans") == 0
    right = [one.sent_to(name) for name, one in together.domains.items()]
    assert together.router_accuracy() == pytest.approx(sum(value or 0 for value in right) / 3)
    assert together.domains["books"].routed is None
    assert "3 different sets of labels" in str(together.not_routed)


def test_the_metric_of_the_routers_choice_is_that_of_the_adapters_it_chose(tiny_pool: TinyPool, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_pool.adapter("books"), tmp_path / name)
    folder = read_pool(tmp_path)
    pooled = open_pool(folder, OpenOptions(offline=True))
    recipes = {name: read(tiny_pool.adapter("books") / "recipe.yaml") for name in folder.folders}
    manifests = manifests_of(folder)
    rows = rows_of_recipes(pooled, manifests, recipes, split=None)
    result = compare_many(pooled, rows, manifests, router=make_router(pooled), resamples=5)
    assert result.not_routed is None
    assert [result.domains[name].sent_to(name) for name in ("one", "two")] == [1.0, 0.0], "equal centroids: the first"
    assert result.router_accuracy() == 0.5
    for one in result.domains.values():
        assert one.routed == pytest.approx(one.metrics), "the copies answer alike, whoever is chosen"


def write_rows(file: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = [f'"{text}",{label},{name}' for text, label, name in rows]
    file.write_text("text,label,domain\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_rows_of_a_file_go_to_the_adapter_they_name(
    pooled: PooledAdapters, tiny_pool: TinyPool, tmp_path: Path
) -> None:
    folder = read_pool(tiny_pool.root)
    rows = [(text, label, name) for name in ("phones", "books") for text, label in domain_rows(name, 6, seed=9)]
    file = write_rows(tmp_path / "rows.csv", rows[::2] + rows[1::2])
    found = rows_of_addresses(pooled, manifests_of(folder), folder.folders, read_addresses(file, "domain"))
    assert list(found) == ["books", "phones"]
    assert set(found["phones"].table["label"]) == {"0", "1"}
    assert sorted(found["books"].table["text"]) == sorted(text for text, _, name in rows if name == "books")
    without = compare_many(pooled, found, manifests_of(folder), router=None, resamples=5)
    assert without.router_accuracy() is None
    assert without.to_mapping()["adapters"]["books"]["rows"] == 6


def test_a_label_that_its_adapter_does_not_know_is_refused(
    pooled: PooledAdapters, tiny_pool: TinyPool, tmp_path: Path
) -> None:
    folder = read_pool(tiny_pool.root)
    rows = [("good book", "positive", "books"), ("good phone", "positive", "phones")]
    file = write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=r"adapter 'phones': .*'positive'"):
        rows_of_addresses(pooled, manifests_of(folder), folder.folders, read_addresses(file, "domain"))
