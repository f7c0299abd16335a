"""The contract suite: everything a task promises, for every task in the folder and each of its problem types."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

from lora_ft.adapters.attach import attach
from lora_ft.assemble.answer import answer, join_rows
from lora_ft.assemble.encode import RowEncoder, encode_rows, references_of
from lora_ft.assemble.prepare import base_config, label_column
from lora_ft.assemble.varied import with_variants
from lora_ft.models.load import Base, load_base, load_processor
from lora_ft.models.precision import plan_precision
from lora_ft.models.resolve import resolve_base
from lora_ft.recipe.schema import DatasetSection, ModelSection, Recipe
from lora_ft.tasks.base import Task, load_task, task_names
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.gates_loss import check_start
from lora_ft.train.supervision import check_ends, check_padding
from tests.bases import make_base

CASES = [(name, kind) for name in task_names() for kind in load_task(name).metrics]
BASE_OF = {
    "AutoModelForSequenceClassification": "bert",
    "AutoModelForTokenClassification": "bert",
    "AutoModelForQuestionAnswering": "bert",
    "AutoModelForMaskedLM": "bert",
    "AutoModelForCausalLM": "llama",
    "AutoModelForSeq2SeqLM": "t5",
    "AutoModelForImageClassification": "vit",
    "AutoModelForObjectDetection": "yolos",
    "AutoModelForCTC": "wav2vec2",
    "AutoModelForSpeechSeq2Seq": "whisper",
    "AutoModelForAudioClassification": "wav2vec2",
}
WITH_OWN_HEAD = ("AutoModelForMaskedLM", "AutoModelForCausalLM")
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
HEART_STEPS = 200
VARIED = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "color_jitter": 0.4,
    "crop": [0.5, 0.9],
    "random_resized_crop": [0.5, 0.9],
    "rand_augment": [2, 9],
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "speed": [0.8, 1.2],
    "noise_snr_db": [10, 30],
    "gain_db": [-6, 6],
    "mask_time_prob": 0.1,
    "mask_time_length": 2,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 2,
}
"""A value for every key of every task's `augmentation` that surely changes a picture or a sound."""
ENDING = ("text-generation", "text2text-generation", "preference-tuning")
"""Tasks that write until an end token."""
FP32 = plan_precision(device="cpu", dtype="float32")


class Built:
    """A task with its example rows encoded, and a fresh adapted model."""

    def __init__(self, task: Task, kind: str, base: Path) -> None:
        self.task, self.kind = task, kind
        self.rows = datasets.Dataset.from_dict(task.example_rows(kind))
        folder = resolve_base(str(base), revision=None, offline=True)
        processor = load_processor(folder, classes=task.processor_classes, trust_remote_code=False)
        processor = task.fit_processor(processor, self.rows, given={})
        settings = task.settings({}, base_config=base_config(folder), processor=processor, problem_type=kind)
        self.problem = Problem(kind, self._labels(), processor, settings)
        self.features = encode_rows(self.rows, task=task, problem=self.problem, training=True)
        self.count = len(self.features)
        self.folder = folder
        loaded = self.base()
        self.head, self.new_head = loaded.head, loaded.new_head
        self.model = attach(loaded.model, PEFT, task_type=task.peft_task_type, head=loaded.head)

    def base(self) -> Base:
        transformers.set_seed(0)
        return load_base(
            self.folder, auto_class=self.task.model_class(self.kind), head=self.task.head,
            config=self.task.model_config(self.problem), precision=FP32, quantization_config=None, dropout=0.0,
            attn_implementation=None, dtype=None, trust_remote_code=False,
        )  # fmt: skip

    def _labels(self) -> tuple[str, ...]:
        if not label_column(self.task):
            return self.task.vocabulary(self.rows, given=None)
        values = self.rows["label"][:]
        flat = {value for row in values for value in (row if isinstance(row, list) else [row])}
        return () if self.kind == "regression" else tuple(sorted(flat))

    def batch(self, indices: Sequence[int] | None = None, *, problem: Problem | None = None) -> dict[str, Any]:
        torch.manual_seed(0)  # a collator may draw masks
        collate = self.task.collator(problem or self.problem)
        return collate([self.features[index] for index in (range(self.count) if indices is None else indices)])

    def outputs(self, batch: dict[str, Any]) -> Any:
        return self.task.forward(self.model, batch, self.problem)

    def loss(self, batch: dict[str, Any], items: Any = None, **options: Any) -> torch.Tensor:
        items = self.task.items(batch) if items is None else items
        return self.task.loss(self.outputs(batch), batch, self.problem, items=items, **options)

    def probe(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.task.probe_values(self.outputs(batch), batch)

    def scores(self) -> dict[str, float]:
        features = encode_rows(self.rows, task=self.task, problem=self.problem)
        answers = answer(
            self.model, features, task=self.task, problem=self.problem, precision=FP32, batch_size=3, measure_loss=True
        )
        predictions = join_rows(answers.parts, features, self.rows, task=self.task, problem=self.problem)
        references = references_of(self.rows, task=self.task, problem=self.problem)
        return self.task.score(predictions, references, self.problem)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found

    def fit(self, steps: int) -> None:
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)
        self.model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(self.batch()).backward()
            optimizer.step()
        self.model.eval()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    name, kind = request.param
    task = load_task(name)
    model = task.model_class(kind)
    whole = model if model in WITH_OWN_HEAD else None
    yield Built(task, kind, make_base(tmp_path_factory.mktemp("base"), BASE_OF[model], auto_class=whole))


def test_example_rows_encode_to_features_that_know_their_row(built: Built) -> None:
    assert len(built.features["length"][:]) == len(built.features["row"][:]) == built.count
    assert set(built.features["row"][:]) == set(range(len(built.rows)))
    assert all(length > 0 for length in built.features["length"][:])
    assert {"length", "row"} <= set(built.features[0])


def test_the_loss_of_the_example_rows_is_finite_and_thirty_steps_lower_it(built: Built) -> None:
    first = built.loss(built.batch())
    assert torch.isfinite(first)
    built.fit(30)
    assert float(built.loss(built.batch())) < 0.8 * float(first)


def test_only_adapter_and_head_get_gradients(built: Built) -> None:
    built.loss(built.batch()).backward()
    for name, parameter in built.model.named_parameters():
        ours = "lora_" in name or "modules_to_save" in name
        assert (parameter.grad is not None) == ours, name
    assert bool(built.head) == any("modules_to_save" in name for name in built.gradients())


def test_several_small_batches_give_the_gradients_of_one_large_one(built: Built) -> None:
    singles = [built.batch([index]) for index in range(built.count)]
    whole = built.batch()
    assert sum(built.task.items(one) for one in singles) == built.task.items(whole)
    items = built.task.totals(whole)
    assert torch.equal(sum(built.task.totals(one) for one in singles), items)
    built.loss(whole, items).backward()
    expected = built.gradients()
    for single in singles:
        built.loss(single, items).backward()
    for name, gradient in built.gradients().items():
        scale = max(1.0, float(expected[name].abs().max()))
        assert torch.allclose(gradient, expected[name], atol=2e-5 * scale), name


def test_rows_learned_by_heart_score_perfectly(built: Built) -> None:
    built.fit(HEART_STEPS)
    scores = built.scores()
    metrics = built.task.metrics[built.kind]
    assert set(metrics) <= set(scores)
    main = metrics[0]
    if main == "perplexity":
        assert scores[main] < 1.5
    else:
        assert scores[main] == pytest.approx(0.0 if main in built.task.lower_is_better else 1.0, abs=0.05)


def test_predictions_are_json_and_need_no_targets(built: Built) -> None:
    import json

    targets = [column.name for column in built.task.columns if column.target and column.name in built.rows.column_names]
    bare = built.rows.remove_columns(targets)
    features = encode_rows(bare, task=built.task, problem=built.problem)
    answers = answer(built.model, features, task=built.task, problem=built.problem, precision=FP32, batch_size=2)
    predictions = join_rows(answers.parts, features, bare, task=built.task, problem=built.problem)
    assert len(predictions) == len(bare)
    json.dumps(predictions, allow_nan=False)


def test_switching_the_adapter_off_and_on_restores_answers_exactly(built: Built) -> None:
    batch = built.batch()
    built.model.eval()
    for name, parameter in built.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        before = built.probe(batch)
        with built.model.disable_adapter():
            bare = built.probe(batch)
        after = built.probe(batch)
    assert torch.equal(before, after)
    assert not torch.equal(before, bare)


def test_the_probe_is_small_and_has_one_row_a_feature(built: Built) -> None:
    with torch.no_grad():
        values = built.probe(built.batch())
    assert values.ndim == 2
    assert len(values) == built.count
    assert values.shape[1] <= 2_000


def test_what_is_random_follows_from_the_seed_alone(built: Built) -> None:
    features = [encode_rows(built.rows, task=built.task, problem=built.problem, training=True) for _ in range(2)]
    one, two = (one[0] for one in features)
    assert set(one) == set(two)
    for name, value in one.items():
        assert np.array_equal(np.asarray(value, dtype=object), np.asarray(two[name], dtype=object)) or torch.equal(
            torch.as_tensor(value), torch.as_tensor(two[name])
        ), name


def same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    """Whether two lists of features are equal, value by value."""
    return len(one) == len(other) and all(
        set(a) == set(b) and all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def varying(built: Built) -> Problem:
    """The problem of a task that varies its training rows, with all that can be varied."""
    if not built.task.augmentation_fields or "variants" in built.task.augmentation_fields:
        pytest.skip("rows of this task are not varied as they are read")
    wild = {name: VARIED[name] for name in built.task.augmentation_fields}
    return replace(built.problem, augmentation=wild, seed=3)


def test_a_varied_row_follows_from_seed_epoch_and_row_alone(built: Built, varying: Problem) -> None:
    def read(*, order: Sequence[int], workers: int = 0, epoch: int = 1, seed: int = 3) -> list[dict[str, Any]]:
        problem = replace(varying, seed=seed)
        features: Any = encode_rows(built.rows, task=built.task, problem=problem, training=True)
        features.set_epoch(epoch)
        loader: Any = torch.utils.data.DataLoader(features, sampler=order, collate_fn=list, num_workers=workers)
        return sorted((row for (row,) in loader), key=lambda row: row["row"])

    forth, back = range(built.count), range(built.count - 1, -1, -1)
    first = read(order=forth)
    assert same(first, read(order=forth))
    assert same(first, read(order=back))
    assert same(first, read(order=back, workers=2))
    assert not same(first, read(order=forth, epoch=2))
    assert not same(first, read(order=forth, seed=4))


def test_every_row_is_varied_in_training(built: Built, varying: Problem) -> None:
    plain = encode_rows(built.rows, task=built.task, problem=built.problem, training=True)
    varied = encode_rows(built.rows, task=built.task, problem=varying, training=True)
    for row in range(built.count):
        assert not same([plain[row]], [varied[row]]), row


def test_nothing_is_varied_outside_of_training(built: Built, varying: Problem) -> None:
    plain = [encode_rows(built.rows, task=built.task, problem=built.problem)[row] for row in range(built.count)]
    measured = [encode_rows(built.rows, task=built.task, problem=varying)[row] for row in range(built.count)]
    assert same(plain, measured)
    for row in range(built.count):  # also where the task itself has to see to it
        bare, wild = (built.task.encode(built.rows[row : row + 1], one) for one in (built.problem, varying))
        assert same([bare], [wild]), row
    batches = [built.task.collator(problem)(plain) for problem in (built.problem, varying)]
    assert same(batches[:1], batches[1:])
    built.model.eval()
    with torch.no_grad():
        assert torch.equal(*(built.probe(batch) for batch in batches))


LEARNED = {
    "text-classification": {
        "single_label_classification": ("it works and i love it . [SEP] -> [[positive]]",),
        "multi_label_classification": ("[[praise]]", "[[quality, service]]"),
        "regression": ("[[5]]", "[[3.5]]"),
    },
    "audio-classification": ("sound of", "[["),
    "image-classification": ("picture of 32 x 32 pixels", "apple", "pear"),
    "object-detection": ("[[apple 2 2 20 44]] [[pear 24 8 22 36]]",),
    "token-classification": ("phone [[B-product]] battery [[I-product]] broke", "one [[B-time]] week [[I-time]]"),
    "question-answering": ("[[the battery]] broke", "[[one week]]", "-> [[no answer]]"),
    "fill-mask": ("[MASK] [[", "works"),
    "text-generation": {
        "completion": ("is the pan good", "[[the pan is good and sturdy . <|endoftext|>]]"),
        "chat": ("is the pan good", "[[the pan is good and sturdy . <|endoftext|>]]"),
        "text": ("i[[love my pan", "<|endoftext|>"),
    },
    "text2text-generation": ("the pan is good", "[[good sturdy pan </s>]]"),
    "automatic-speech-recognition": {"ctc": ("[[YES NO]]",), "seq2seq": ("yes no",)},
    "preference-tuning": ("chosen: is the pan good", "[[the pan is good . <|endoftext|>]]\nrejected: "),
}
"""What a person must find in what is shown of a task's example rows."""


def test_a_feature_is_shown_with_what_is_learned_of_it_marked(built: Built) -> None:
    shown = [built.task.shown(built.features[index], built.problem) for index in range(built.count)]
    assert all("[[" in one and "]]" in one for one in shown)
    wanted: Any = LEARNED[built.task.name]
    together = "\n".join(shown)
    for text in wanted[built.kind] if isinstance(wanted, dict) else wanted:
        assert text in together or (text == "sound of" and "spectrogram of" in together)


def test_padding_is_never_learned_and_what_is_to_be_written_has_an_end(built: Built) -> None:
    if not built.task.token_labels:
        pytest.skip("no label for each token")
    assert set(built.task.token_labels) <= set(built.features[0])
    check_padding(built.features, task=built.task, problem=built.problem)
    check_ends(built.features, task=built.task, problem=built.problem)
    ends = built.task.end_tokens(built.problem)
    assert bool(ends) == (built.task.name in ENDING and built.kind != "text")


def test_a_healthy_base_begins_where_equal_probabilities_are(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    uniform = built.task.uniform_loss(built.problem)
    check_start(float(built.loss(built.batch())), uniform=uniform, new_head=built.new_head)
    assert not caplog.records


@pytest.fixture
def varied(built: Built, tmp_path: Path) -> tuple[Problem, Recipe]:
    """The problem of a task whose rows get variants, with all ways that its rows survive, and a recipe beside files."""
    task = built.task
    if "variants" not in task.augmentation_fields or (task.varied_texts and not task.varied_columns(built.kind)):
        pytest.skip("rows of this task get no variants")
    (tmp_path / "words.tsv").write_text("bad\tpoor\ngood\tnice\nbroke\tfailed\nnever\thardly\n", encoding="utf-8")
    (tmp_path / "lora_ft_contract_turned.py").write_text("def turn(texts):\n    return [t + ' again' for t in texts]\n")
    wild: dict[str, Any] = {
        "variants": 4, "random_deletion": 0.3, "random_swap": 0.3, "character_noise": 0.1, "synonym_replacement": 0.3,
        "synonyms": str(tmp_path / "words.tsv"), "entity_swap": 1.0, "keep_words": [],
        "back_translation": "lora_ft_contract_turned:turn",
    }  # fmt: skip
    assert set(task.augmentation_fields) <= set(wild), "a key that nothing here tries"
    given = {name: wild[name] for name in task.augmentation_fields}
    recipe = Recipe(tmp_path / "r.yaml", task.name, ModelSection("base"), {}, DatasetSection(), {}, {})
    return replace(built.problem, augmentation=given, seed=3), recipe


def test_variants_of_rows_are_rows_without_a_fault_that_give_a_finite_loss(
    built: Built, varied: tuple[Problem, Recipe]
) -> None:
    problem, recipe = varied
    rows, variants = with_variants(built.rows, task=built.task, problem=problem, recipe=recipe)
    assert len(variants.sources) >= len(built.rows)
    assert rows.features == built.rows.features
    assert set(variants.ways) <= set(built.task.augmentation_fields)
    own = [column.name for column in built.task.columns if column.target and column.name in rows.column_names]
    for row, source in zip(list(rows)[len(built.rows) :], variants.sources, strict=True):
        assert built.task.fault(row, labels=built.problem.labels) is None
        if built.task.varied_texts:  # else labels move with their words, and the task's own tests say how
            assert all(row[name] == built.rows[source][name] for name in own)
    features = encode_rows(rows, task=built.task, problem=problem, training=True)
    batch = built.task.collator(problem, training=True)([features[index] for index in range(len(features))])
    assert torch.isfinite(built.loss(batch))


def test_variants_follow_from_the_seed_and_other_features_from_no_augmentation(
    built: Built, varied: tuple[Problem, Recipe]
) -> None:
    problem, recipe = varied
    made = [with_variants(built.rows, task=built.task, problem=one, recipe=recipe) for one in (problem, problem)]
    assert list(made[0][0]) == list(made[1][0])
    assert made[0][1] == made[1][1]
    other = with_variants(built.rows, task=built.task, problem=replace(problem, seed=4), recipe=recipe)
    assert list(made[0][0]) != list(other[0])
    plain, wild = (encode_rows(built.rows, task=built.task, problem=one) for one in (built.problem, problem))
    assert same(list(plain), list(wild))


def test_a_training_collator_that_draws_by_chance_says_so(built: Built) -> None:
    def stand() -> list[Any]:
        numpys = np.random.get_state()
        return [torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2], random.getstate()]

    read_by_row = built.task.augmentation_fields if "variants" not in built.task.augmentation_fields else ()
    wild = replace(built.problem, augmentation={name: VARIED[name] for name in read_by_row})
    for problem in (built.problem, wild):
        features = encode_rows(built.rows, task=built.task, problem=problem, training=True)
        rows = [features[index] for index in range(len(features))]
        collate, before = built.task.collator(problem, training=True), stand()
        collate(rows)
        assert (stand() != before) == built.task.collates_by_chance(problem)


def test_what_is_perceived_of_a_row_is_what_is_encoded_of_it(built: Built, varying: Problem) -> None:
    for number in range(built.count):
        encoder = RowEncoder(built.task, varying, training=True)
        row, seeded = built.rows[number], encoder.problem_at(number, epoch=1)
        perceived = built.task.perceived(row, seeded, training=True)
        made = encoder(built.rows[number : number + 1], index=number, epoch=1)
        if "pixel_values" in made:
            settings, pixels = built.problem.processor.to_dict(), np.asarray(made["pixel_values"][0])
            mean, std = (np.reshape(settings[name], (-1, 1, 1)) for name in ("image_mean", "image_std"))
            seen = np.asarray(perceived).transpose(2, 0, 1) / 255
            off = np.abs((seen - mean) / std - pixels).max(axis=0) > 0.02
            boxes = sum(2 * (w + h) * max(pixels.shape) + 8 for _, _, w, h in made.get("boxes", [[]])[0])
            assert off.sum() <= boxes  # all but the lines of the boxes
        else:
            extractor = built.problem.processor
            extractor = extractor if "feature_extractor" not in vars(extractor) else extractor.feature_extractor
            samples, rate = perceived
            name = extractor.model_input_names[0]
            heard = extractor(samples, sampling_rate=rate, return_tensors="np")[name][0]
            assert heard.shape == np.asarray(made[name][0]).shape
            assert np.allclose(heard, made[name][0], atol=1e-4)
        plain = built.task.perceived(row, built.problem)
        assert np.asarray(plain[0] if isinstance(plain, tuple) else plain).size


def test_the_facts_of_a_task_name_its_columns_and_metrics(built: Built) -> None:
    facts = built.task.facts()
    assert facts.name in task_names()
    names = {column.name for column in facts.columns}
    assert all(set(needed) <= names for needed in facts.column_sets.values())
    assert built.task.argument in {column.name for column in built.task.inputs()}
    assert all(facts.metrics[kind] for kind in facts.metrics)


def test_generation_fields_are_fields_of_transformers_own_config(built: Built) -> None:
    known = vars(transformers.GenerationConfig())
    assert not set(built.task.generation_fields) - set(known)
