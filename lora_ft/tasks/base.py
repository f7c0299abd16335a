"""The contract of a task: everything that makes one task different from another, and nothing else.

The way of one row: `encode` -> one or more features -> `collator` -> a batch -> `forward` -> `loss`, and `answer` ->
`decode` -> one part for each feature -> `join` -> one prediction. `score` compares predictions with `references`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError, closest
from lora_ft.recipe.schema import Column, FieldTypes, TaskFacts
from lora_ft.tasks.parts.problem import Features, Generation, Parts, Problem, Rows, Variation

if TYPE_CHECKING:
    import numpy as np
    import torch


class Task(ABC):
    """One task. A subclass in a file of this folder is the whole of a task; it holds no state.

    A file of this folder must import neither torch nor transformers at its top: `lora-ft check` reads it.

    Attributes:
        name: The Hub's pipeline tag; the file is named after it with `_` for `-`.
        summary: One line for `lora-ft tasks`.
        auto_class: Name of the transformers auto class that builds the model; see `model_class`.
        processor_classes: Names of the auto classes that may load the processor, the first that can does.
        peft_task_type: peft's TaskType, or None where it does harm (vision, speech, question answering).
        head: Module names that hold the head in the families of this task; what `modules_to_save` defaults to.
        columns: The columns it reads.
        column_sets: Problem type -> the columns that rows of it must have, where the columns decide the problem type.
        metrics: For each problem type its metric names; the first one picks the best model.
        lower_is_better: Metrics that improve downwards.
        processor_fields: The `processor` keys it understands with their types, or with their values.
        generation_fields: The `generation_config` keys it understands; fields of transformers' GenerationConfig.
        augmentation_fields: The `augmentation` keys it understands.
        loss_types: The values of `loss.loss_type` it understands, the first is the default; empty: it has one loss.
        argument: The column that a word on the command line of `lora-ft predict` fills.
        lazy: Whether features are made each time a row is read and never kept (images, sounds).
        weighs_classes: Whether `loss.class_weight` means something.
        smooths_labels: Whether `label_smoothing_factor` means something.
        least_tokens: The least `processor.max_length` that leaves room for a text.
        asks_bare_base: Whether what it measures needs the answers of the base without its adapter too.
        changes_model: Whether its functions change the model while they are called, so that threads must take turns.
        token_labels: Columns of features that hold a label for each token, -100 where nothing is learned.
        free_texts: Text columns into which no label points, so that preparation may rewrite them.
        varied_texts: Those of them of which nothing is learned word by word, so that augmentation may vary them.
        starting_point: For `lora-ft init`: a base, and a training file.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    auto_class: ClassVar[str]
    processor_classes: ClassVar[tuple[str, ...]] = ("AutoTokenizer",)
    peft_task_type: ClassVar[str | None] = None
    head: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]]
    column_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    metrics: ClassVar[Mapping[str, tuple[str, ...]]]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {}
    generation_fields: ClassVar[Mapping[str, FieldTypes]] = {}
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = {}
    loss_types: ClassVar[tuple[str, ...]] = ()
    argument: ClassVar[str] = "text"
    lazy: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    smooths_labels: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 1
    asks_bare_base: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False
    token_labels: ClassVar[tuple[str, ...]] = ()
    free_texts: ClassVar[tuple[str, ...]] = ()
    varied_texts: ClassVar[tuple[str, ...]] = ()
    starting_point: ClassVar[tuple[str, str]] = ("google-bert/bert-base-uncased", "data/train.csv")

    # What the rows and the base make of it

    def model_class(self, problem_type: str) -> str:
        """Name of the transformers auto class for a problem type."""
        del problem_type
        return self.auto_class

    def auto_classes(self) -> tuple[str, ...]:
        """Names of all auto classes that build a model of this task."""
        return tuple(dict.fromkeys(map(self.model_class, self.metrics)))

    def problem_type_of(self, columns: Collection[str], *, base_config: Mapping[str, Any]) -> str:
        """The problem type of rows with these columns on a base with this config.json.

        Not asked where a column of kind `label` decides it (`lora_ft.data.labels.infer_problem_type`).

        Raises:
            InputError: No problem type fits.
        """
        del base_config
        for problem_type, needed in self.column_sets.items():
            if set(needed) <= set(columns):
                return problem_type
        return next(iter(self.metrics))

    def vocabulary(self, rows: Iterable[Mapping[str, Any]], *, given: Sequence[str] | None) -> tuple[str, ...]:
        """All labels in a stable order, from the training rows; not asked where there is a column of kind `label`.

        Args:
            rows: The training rows, one mapping each.
            given: `dataset.label_names` of the recipe.
        """
        del rows
        return tuple(given or ())

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """The recipe's `processor` section with its gaps filled in, for instance `max_length`.

        Args:
            given: The section as the recipe has it.
            base_config: The base's config.json.
            processor: The processor of the base.
            problem_type: One of the keys of `metrics`.

        Raises:
            InputError: The base cannot do what the section asks for; the message begins with the key.
        """
        del base_config, processor, problem_type
        return dict(given)

    def fit_processor(self, processor: Any, rows: Iterable[Mapping[str, Any]], *, given: Mapping[str, Any]) -> Any:
        """The processor for these training rows: as it is, or completed (a CTC vocabulary made from the transcripts).

        Args:
            processor: The processor of the base.
            rows: The training rows.
            given: The recipe's `processor` section.
        """
        del rows, given
        return processor

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """Why a row cannot be used, with the column's name first; None if it can.

        A bad row is an error, or left out and counted, as `dataset.on_bad_row` says.
        """
        del row, labels
        return None

    def misfit(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """Why a row without a fault cannot be learned with this processor and these settings; None if it can.

        For instance a sound that is longer than the base hears. Asked of all rows that are trained or measured on,
        after `fault`; what happens to such rows is said by `dataset.on_bad_row` too.
        """
        del row, problem
        return None

    @abstractmethod
    def model_config(self, problem: Problem) -> dict[str, Any]:
        """Config fields that the data decides, such as `num_labels`, `id2label`, `label2id`, `problem_type`."""

    # Rows -> features -> batch -> loss

    @abstractmethod
    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """Turns a batch of rows into features.

        Args:
            rows: Columns under our names; target columns may be absent (prediction).
            problem: What the task is about here.
            training: Whether the rows are trained on; only then is anything augmented.

        Returns:
            Model inputs without padding; `length` (what the row costs, tokens for texts); `truncated` (bool); `labels`
            where the rows have targets; `row`, the position in this batch of the row that each feature came from,
            where that is not one for each; and whatever `decode` needs to read.
        """

    def lengths(self, rows: Rows, problem: Problem) -> list[int]:
        """What each row of a lazy task costs, for batches of like length."""
        del problem
        return [1] * len(next(iter(rows.values())))

    @abstractmethod
    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """What predictions are compared with, one for each row; JSON-serialisable."""

    @abstractmethod
    def collator(self, problem: Problem, *, training: bool = False) -> Callable[[Sequence[Mapping[str, Any]]], Any]:
        """A function from a list of features to a padded batch: a dict of tensors, `labels` among them if known."""

    def collates_by_chance(self, problem: Problem) -> bool:
        """Whether the training collator draws from the global generators, which it is then given for each batch."""
        del problem
        return False

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """The model's outputs for a batch, from which `loss` and `answer` follow."""
        del problem
        return model(**{name: value for name, value in batch.items() if name != "labels"})

    @abstractmethod
    def loss(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        problem: Problem,
        *,
        items: torch.Tensor | int | float,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """The loss of a batch, a scalar: a sum divided by `items`.

        With `items` counted over all accumulated batches, their losses add up to the loss of one large batch.

        Args:
            outputs: What `forward` returned.
            batch: The batch with its labels.
            problem: What the task is about here.
            items: What the sum is divided by: a number, or `totals` of all accumulated batches.
            class_weight: One weight for each label, where `weighs_classes`.
            label_smoothing: Where `smooths_labels`.
        """

    def items(self, batch: Mapping[str, Any]) -> int:
        """What a loss is averaged over in a batch: labels that are not -100."""
        return int(batch["labels"].ne(-100).sum())

    def totals(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """`items` as a tensor, which is added up over all accumulated batches on all processes for training.

        Several numbers where parts of the loss are averaged over different things. A step in which one of them is 0
        teaches that part nothing.
        """
        import torch

        return torch.tensor(self.items(batch))

    def variations(self, rows: Iterable[Mapping[str, Any]], problem: Problem) -> Mapping[str, Variation]:
        """The ways in which a training row is varied before it is encoded, where `augmentation` has `variants`.

        Args:
            rows: The training rows, which variants may be made of (other entities).
            problem: Its augmentation says which ways; `back_translation` is none of them: it takes many texts at once.

        Returns:
            Name of a way -> what varies a row by it: a row and a generator -> the row varied, or equal to it where
            nothing of it can be varied so. A variant must be as right as its row: labels stay on what they are of.

        Raises:
            InputError: A way that these rows do not survive, or a file that cannot be read.
        """
        from lora_ft.tasks.parts.text_augmentation import text_variations

        del rows
        return text_variations(problem.augmentation, columns=self.varied_columns(problem.problem_type))

    def varied_columns(self, problem_type: str) -> tuple[str, ...]:
        """The columns among `varied_texts` that rows of a problem type are read from."""
        known = self.column_sets.get(problem_type)
        return tuple(name for name in self.varied_texts if known is None or name in known)

    # Answers -> predictions -> metrics

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """What the model says of a batch, as small as `decode` and the metrics need it: logits, sums, generated ids.

        Args:
            model: The model, in eval mode under inference mode.
            batch: The batch; with `labels` where metrics are wanted, without where predictions are.
            problem: What the task is about here.
            outputs: What `forward` returned, or None if it was not called.

        Returns:
            Tensors with the batch's features as their first dimension.
        """
        return {"logits": (self.forward(model, batch, problem) if outputs is None else outputs)["logits"]}

    @abstractmethod
    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """Turns the answer for some features into one part for each: the one truth for evaluate, predict and serve.

        Args:
            answer: As `answer` made it, in float32 or integers.
            features: The features, in the same order.
            problem: What the task is about here.
        """

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """Makes one prediction of the parts of a row (windows of a long text), in the order of its features.

        Args:
            parts: As `decode` made them; none of a row that no feature begins in (blocks of a stream of texts).
            row: The row, under our column names.
            problem: What the task is about here.

        Returns:
            The prediction; JSON-serialisable.
        """
        del row, problem
        (only,) = parts
        return dict(only)

    @abstractmethod
    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """Metrics of any of the rows: for all of them, and for the draws of a bootstrap.

        Args:
            predictions: As `join` makes them.
            references: As `references` gives them.
            problem: What the task is about here.

        Returns:
            A function from row numbers `(rows,)`, with repetition, to metrics.
        """

    def score(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, float]:
        """Metrics of all rows; see `scorer`."""
        import numpy as np

        return self.scorer(predictions, references, problem)(np.arange(len(references)))

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """What a model that learned nothing would answer to every row; None: only the untrained model can tell.

        Args:
            references: Of the training rows.
            problem: What the task is about here.
        """
        del references, problem
        return None

    def learned(
        self, ours: Mapping[str, float], baseline: Mapping[str, float], *, rows: int, problem_type: str
    ) -> bool:
        """Whether a run learned anything: better than the constant answer, or than the untrained model.

        Args:
            ours: Metrics of the adapter.
            baseline: Metrics of the constant answer, or of the untrained model.
            rows: Rows that they were measured on.
            problem_type: One of the keys of `metrics`.
        """
        del rows
        main = self.metrics[problem_type][0]
        return ours[main] < baseline[main] if main in self.lower_is_better else ours[main] > baseline[main]

    def tune(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, Any]:
        """Settings that are best chosen on the validation rows after training (a threshold); saved with the adapter."""
        del predictions, references, problem
        return {}

    # Proof, documentation, presentation

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """What of the outputs is stored in the manifest and compared at every load, `(rows, values)`; a few hundred."""
        del batch
        logits: torch.Tensor = outputs["logits"]
        return logits.flatten(1)

    @abstractmethod
    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """A few rows, column by column: documentation, probe inputs and test data at once."""

    def stream(self, model: Any, row: Mapping[str, Any], problem: Problem) -> Iterator[str]:
        """The generated text of one row piece by piece.

        Raises:
            InputError: The task generates nothing.
        """
        del model, row, problem
        raise InputError(f"--stream: {self.name} generates no text. Leave it out")

    def generation(self, model: Any, problem: Problem) -> Generation | None:
        """What `answer` generates by, whatever the base's own settings are; None: the task generates nothing."""
        del model, problem
        return None

    def draw(self, row: Mapping[str, Any], prediction: Mapping[str, Any]) -> Any:
        """A PIL image of a row with its prediction drawn into it.

        Raises:
            InputError: The task has nothing to draw.
        """
        del row, prediction
        raise InputError(f"--pictures: {self.name} has nothing to draw. Leave it out")

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """What a model gets of a training feature, as a person reads it; what it learns of it stands in `[[ ]]`."""
        del problem
        return str(feature.get("labels", ""))

    def perceived(self, row: Mapping[str, Any], problem: Problem, *, training: bool = False) -> Any:
        """What a model is given of a row's picture or sound: a PIL image with its boxes, or samples and their rate.

        None where a row has neither. In training it is varied as `encode` varies the row alone.
        """
        del row, problem, training

    def end_tokens(self, problem: Problem) -> tuple[int, ...]:
        """Tokens one of which must end what is learned to be written; none where nothing is, or nothing ends it."""
        del problem
        return ()

    def uniform_loss(self, problem: Problem) -> float | None:
        """The loss of a model to which everything is equally likely; None where there is no such number."""
        del problem
        return None

    def hint(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """What a user of `lora-ft predict` probably did not mean by a row; None if it is as it should be."""
        del row, problem
        return None

    def example_word(self, problem: Problem) -> str:
        """What to try a new adapter with: a word for the command line of `lora-ft predict`."""
        del problem
        return {"image": "photo.jpg", "audio": "sound.wav"}.get(self.argument, "a new text")

    def facts(self) -> TaskFacts:
        """What a recipe is checked against."""
        return TaskFacts(
            name=self.name,
            columns=self.columns,
            column_sets=self.column_sets,
            metrics=self.metrics,
            lower_is_better=self.lower_is_better,
            processor_fields=self.processor_fields,
            generation_fields=self.generation_fields,
            augmentation_fields=self.augmentation_fields,
            loss_types=self.loss_types,
            weighs_classes=self.weighs_classes,
            smooths_labels=self.smooths_labels,
            starting_point=self.starting_point,
            auto_classes=self.auto_classes(),
            least_tokens=self.least_tokens,
            free_texts=self.free_texts,
            varied_texts=self.varied_texts,
            lazy=self.lazy,
        )

    def inputs(self) -> tuple[Column, ...]:
        """The columns that a prediction needs or may have."""
        return tuple(column for column in self.columns if not column.target)


def task_names() -> tuple[str, ...]:
    """All tasks: the files of this folder; `parts/` holds what several of them are made of."""
    folder = importlib.import_module(__package__ or "").__path__
    names = (module.name for module in pkgutil.iter_modules(folder) if module.name != "base" and not module.ispkg)
    return tuple(sorted(name.replace("_", "-") for name in names))


def load_task(name: str) -> Task:
    """Finds a task by name.

    Args:
        name: The pipeline tag, `text-classification`.

    Returns:
        The task.

    Raises:
        InputError: No file of this folder has that name.
    """
    if name not in task_names():
        known = task_names()
        raise InputError(f"task = {name!r}: there is no such task.{closest(name, known)} Known: {', '.join(known)}")
    module = importlib.import_module(f"lora_ft.tasks.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    (task_class,) = classes
    return task_class()
