"""Embeddings of bases: of every family of bases, the same whatever the padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lora_ft.models.embed import embed
from tests.families import FAMILIES, ROWS
from tests.models.loading import load


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_gives_one_finite_vector_a_row(name: str, family_bases) -> None:
    family = FAMILIES[name]
    base = load(family_bases(family), auto_class=family.auto_class, head=family.known, config=family.config)
    model = base.model.eval()
    batch = {key: value for key, value in family.batch().items() if key != "labels"}
    with torch.no_grad():
        vectors = embed(model, batch)
    assert vectors is not None
    assert vectors.shape[0] == ROWS
    assert vectors.ndim == 2
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_several_layers_end_with_the_last_one(name: str, family_bases) -> None:
    family = FAMILIES[name]
    model = load(
        family_bases(family), auto_class=family.auto_class, head=family.known, config=family.config
    ).model.eval()
    batch = {key: value for key, value in family.batch().items() if key != "labels"}
    with torch.no_grad():
        last, several = embed(model, batch), embed(model, batch, layers=2)
    assert last is not None
    assert several is not None
    assert torch.isfinite(several).all()
    torch.testing.assert_close(several[:, -last.shape[1] :], last)


def test_layers_lie_side_by_side(tiny_bert: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        states = model.bert(ids, output_hidden_states=True).hidden_states
        found = embed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, layers=2)
    assert found is not None
    torch.testing.assert_close(found, torch.cat([states[-2].mean(dim=1), states[-1].mean(dim=1)], dim=1))


def test_padding_does_not_move_an_embedding(tiny_bert: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    alone = embed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    wide = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    padded = embed(model, {"input_ids": wide, "attention_mask": (wide > 0).long()})
    assert alone is not None
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


def test_a_batch_without_the_main_input_has_no_embedding(tiny_bert: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    assert embed(model, {"chosen_input_ids": torch.ones(1, 3, dtype=torch.long)}) is None
