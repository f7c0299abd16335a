"""A row goes to the adapter with the nearest centroid, whatever stands beside it and whatever its target is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.pool_folder import read_pool
from lora_ft.adapters.verify import read_manifest
from lora_ft.assemble.pooled import PooledAdapters, open_pool
from lora_ft.assemble.router import make_router, nearest
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import InputError, RunError
from tests.pools import TinyPool, forget_centroid, mixed_rows


@pytest.fixture(scope="module")
def pooled(tiny_pool: TinyPool) -> PooledAdapters:
    return open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True))


def test_a_row_goes_to_the_nearest_centroid_of_the_bare_base(pooled: PooledAdapters, tiny_pool: TinyPool) -> None:
    router = make_router(pooled)
    assert router.without == (tiny_pool.without_centroid,)
    rows = [{"text": text} for _, text in mixed_rows()]
    routes = router.choose(rows, batch_size=3)

    alone = open_adapter(tiny_pool.adapter("books"), OpenOptions(offline=True))
    bare = alone.model.get_base_model()
    means = {}
    for name in ("books", "phones"):
        centroid = read_manifest(tiny_pool.adapter(name)).centroid
        assert centroid is not None
        means[name] = np.array(centroid.mean)
    for row, route in zip(rows, routes, strict=True):
        batch = alone.processor(row["text"], return_tensors="pt")
        with alone.model.disable_adapter():
            vector = bare.base_model(**batch)["last_hidden_state"].mean(1)[0].detach().numpy()
        distances = {name: float(np.linalg.norm(vector - mean)) for name, mean in means.items()}
        near, far = sorted(distances, key=distances.__getitem__)
        assert route.adapter == near
        assert route.score == pytest.approx(1 - distances[near] / distances[far], abs=1e-4)


def test_targets_and_other_keys_do_not_matter(pooled: PooledAdapters) -> None:
    router = make_router(pooled)
    plain = router.choose([{"text": "the book was great"}])
    assert router.choose([{"text": "the book was great", "label": "a label of nobody", "id": 3}]) == plain
    assert router.choose([]) == []


def test_the_score_says_how_clear_the_choice_is() -> None:
    assert nearest(np.array([[3.0, 4.0]]), ["a", "b"]) == [("a", 0.25)]
    assert nearest(np.array([[2.0, 2.0], [0.0, 0.0]]), ["a", "b"]) == [("a", 0.0), ("a", 0.0)]
    assert nearest(np.array([[2.0]]), ["a"]) == [("a", 1.0)]


def test_adapters_that_encode_otherwise_are_compared_all_the_same(tiny_pool: TinyPool, tmp_path: Path) -> None:
    rows = [{"text": text} for _, text in mixed_rows()]
    one = make_router(open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True)))
    assert [space.names for space in one.spaces] == [("books", "phones")]
    root = tmp_path / "pool"
    shutil.copytree(tiny_pool.root, root)
    file = root / "phones" / "run" / "adapter" / "manifest.json"
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
    longer = replace(manifest, settings={**manifest.settings, "max_length": manifest.settings["max_length"] + 8})
    file.write_text(longer.to_json(), encoding="utf-8")
    two = make_router(open_pool(read_pool(root), OpenOptions(offline=True)))
    assert [space.names for space in two.spaces] == [("books",), ("phones",)]
    assert [route.adapter for route in two.choose(rows)] == [route.adapter for route in one.choose(rows)]


def test_a_pool_without_centroids_has_no_router(tiny_pool: TinyPool, tmp_path: Path) -> None:
    shutil.copytree(tiny_pool.adapter("books"), tmp_path / "books")
    forget_centroid(tmp_path / "books")
    pooled = open_pool(read_pool(tmp_path), OpenOptions(offline=True))
    with pytest.raises(InputError, match="none of the 1 adapters has a centroid"):
        make_router(pooled)


def test_an_adapter_that_is_first_asked_for_inside_a_pass_is_an_error_and_no_deadlock(tiny_pool: TinyPool) -> None:
    pooled = open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True))
    with pooled.pool.rows([None]), pytest.raises(RunError, match="a pass is open"):
        pooled.member("books")
    assert pooled.member("books").columns == ("text",)
