"""Rows of several adapters in the same batches get the answers that each adapter gives alone."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest

from lora_ft.adapters.pool_folder import read_pool
from lora_ft.adapters.pool_store import PoolLimits
from lora_ft.assemble.addressed import AddressedRow
from lora_ft.assemble.pooled import PooledAdapters, open_pool
from lora_ft.assemble.router import make_router
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import DataError
from lora_ft.serve.predict_many import addressed, predict_many, prove_all
from tests.pools import TEXTS, TinyPool, mixed_rows


@pytest.fixture(scope="module")
def pooled(tiny_pool: TinyPool) -> PooledAdapters:
    return open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True))


def asked() -> list[AddressedRow]:
    return [AddressedRow({"text": text}, name, f"row {n}") for n, (name, text) in enumerate(mixed_rows(), start=1)]


@pytest.mark.parametrize(
    ("limits", "batch_size"),
    [(None, 32), (None, 2), (PoolLimits(max_adapters=1), 4), (PoolLimits(max_bytes=20_000), 4)],
)
def test_mixed_rows_are_answered_as_each_adapter_answers_them_alone(
    tiny_pool: TinyPool, limits: PoolLimits | None, batch_size: int
) -> None:
    pooled = open_pool(read_pool(tiny_pool.root), OpenOptions(offline=True), limits=limits)
    answers = list(predict_many(pooled, asked(), batch_size=batch_size, window=2))
    assert [(one["adapter"], one["text"]) for one in answers] == mixed_rows()
    for name, texts in TEXTS.items():
        alone = open_adapter(tiny_pool.adapter(name), OpenOptions(offline=True))
        expected = alone.predict(datasets.Dataset.from_dict({"text": list(texts)}), batch_size=1)
        own = [one for one in answers if one["adapter"] == name]
        assert [one["label"] for one in own] == [one["label"] for one in expected]
        for one, other in zip(own, expected, strict=True):
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_rows_that_do_not_say_go_to_the_default_or_where_the_router_sends_them(pooled: PooledAdapters) -> None:
    rows = [AddressedRow({"text": "awful book"}, None, "row 1"), AddressedRow({"text": "awful pan"}, "pans", "row 2")]
    by_default = list(predict_many(pooled, rows, default="phones"))
    assert [one["adapter"] for one in by_default] == ["phones", "pans"]
    assert "adapter_score" not in by_default[0]
    router = make_router(pooled)
    routed = list(predict_many(pooled, rows, router=router))
    (route,) = router.choose([{"text": "awful book"}])
    assert (routed[0]["adapter"], routed[0]["adapter_score"]) == route
    assert "adapter_score" not in routed[1]
    direct = list(predict_many(pooled, [rows[0]._replace(adapter=route.adapter)]))
    assert routed[0]["scores"] == pytest.approx(direct[0]["scores"], abs=1e-5)


def test_a_stream_is_read_no_further_than_one_window_ahead(pooled: PooledAdapters) -> None:
    taken = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "good book", "d": "books"}

    next(predict_many(pooled, addressed(endless(), column="d"), batch_size=2, window=2))
    assert taken == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "d": "boks"}, r"row 2: there is no adapter 'boks'. Did you mean 'books'\?"),
        ({"text": "a"}, "row 2: names no adapter"),
        ({"d": "books"}, "row 2: has none of the columns. Expected text"),
        ({"text": "a", "text_pair": "b", "d": "books"}, "row 2: has text, text_pair, the rows of 'books' before it"),
    ],
)
def test_a_bad_row_is_named(pooled: PooledAdapters, row: dict[str, str], message: str) -> None:
    rows = addressed([{"text": "good book", "d": "books"}, row], column="d")
    with pytest.raises(DataError, match=message):
        list(predict_many(pooled, rows))


def test_rows_before_one_that_its_adapter_cannot_use_are_answered(pooled: PooledAdapters) -> None:
    rows = addressed([{"text": "good book", "d": "books"}, {"d": "books"}], column="d")
    answers = predict_many(pooled, rows)
    assert next(answers)["text"] == "good book"
    with pytest.raises(DataError, match="row 2: has none of the columns"):
        next(answers)


def test_no_row_gives_no_answer_and_all_can_be_proved_before(pooled: PooledAdapters) -> None:
    assert list(predict_many(pooled, [])) == []
    done: list[int] = []
    prove_all(pooled, ["books", "pans"], advance=done.append)
    assert done == [1, 1]
