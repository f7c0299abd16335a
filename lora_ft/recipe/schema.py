"""The typed Recipe: what every other room reads; made only by `lora_ft.recipe.read.read_recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Split = Literal["train", "validation", "test"]


ColumnKind = Literal[
    "text", "label", "texts", "labels", "spans", "answers", "messages", "image", "audio", "objects", "key"
]
"""What a column holds; `lora_ft.data.kinds` says what each becomes."""

FieldTypes = tuple[Any, ...]
"""Of a key in a section: the types it may have (`int`, `list`), or its values (`"left", "right"`)."""


@dataclass(frozen=True)
class Column:
    """One column that a task reads, under our name.

    Attributes:
        name: The name in `dataset.columns`, on the left: `text`, `text_pair`, `label`.
        kind: What it holds; `label` columns get a label vocabulary.
        required: Whether training needs it.
        help: One line for `lora-ft tasks` and `init`.
        target: Whether it holds what is to be learned: rows to predict do not have it.
    """

    name: str
    kind: ColumnKind
    required: bool
    help: str
    target: bool = False


@dataclass(frozen=True)
class TaskFacts:
    """What the recipe needs to know of a task in order to check a recipe; made by the task itself.

    Attributes:
        name: The Hub's pipeline tag, `text-classification`.
        columns: All columns the task reads.
        column_sets: Problem type -> the columns that rows of it must have, one of which must be complete; empty: the
            required columns.
        metrics: For each problem type the names of its metrics; the first is the default for the best model.
        lower_is_better: Metrics that improve downwards (`loss` is always one).
        processor_fields: The `processor` keys that the task understands, each with its types, or with its values.
        generation_fields: Likewise for `generation_config`; empty: the task generates nothing.
        augmentation_fields: Likewise for `augmentation`.
        loss_types: The values of `loss.loss_type` that the task understands; empty: it has one loss, without `beta`.
        weighs_classes: Whether `loss.class_weight` means something.
        smooths_labels: Whether `training_args.label_smoothing_factor` means something.
        starting_point: For `init`: a base, and a training file.
        auto_classes: Names of transformers' auto classes that build its models; empty: not known.
        least_tokens: The least `processor.max_length` that leaves room for a text.
        free_texts: Text columns that preparation may rewrite; empty: labels point into its texts, or it has none.
        varied_texts: Text columns that augmentation may vary.
        lazy: Whether rows are images or sounds, whose length in tokens nobody knows.
    """

    name: str
    columns: tuple[Column, ...]
    metrics: Mapping[str, tuple[str, ...]]
    lower_is_better: frozenset[str]
    processor_fields: Mapping[str, FieldTypes]
    column_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generation_fields: Mapping[str, FieldTypes] = field(default_factory=dict)
    augmentation_fields: Mapping[str, FieldTypes] = field(default_factory=dict)
    loss_types: tuple[str, ...] = ()
    weighs_classes: bool = False
    smooths_labels: bool = False
    starting_point: tuple[str, str] = ("google-bert/bert-base-uncased", "data/train.csv")
    auto_classes: tuple[str, ...] = ()
    least_tokens: int = 1
    free_texts: tuple[str, ...] = ()
    varied_texts: tuple[str, ...] = ()
    lazy: bool = False


@dataclass(frozen=True)
class ModelSection:
    """`model`: arguments of `from_pretrained`, and `dropout`, our own word.

    Attributes:
        pretrained_model_name_or_path: A hub id, or a folder (relative to the recipe).
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code from the base's repository may run.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, ...
        dtype: `float32`, `bfloat16`, `float16`, or None: follows the device.
        problem_type: Given only where the data leaves it open (whole numbers as regression targets).
        dropout: Probability for every dropout of the frozen base, or `keep` for the base's own.
    """

    pretrained_model_name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    dtype: str | None = None
    problem_type: str | None = None
    dropout: float | Literal["keep"] = 0.0


@dataclass(frozen=True)
class DatasetSection:
    """`dataset`: arguments of `datasets.load_dataset`, and our own words.

    Attributes:
        path: A hub id, or a folder written by `save_to_disk` (then absolute); None with `data_files`.
        name: Configuration of a hub dataset.
        revision: Branch, tag or commit of a hub dataset.
        data_files: For each split the files, absolute, globs expanded and sorted.
        split: For each of our splits the split expression of the source (`train[:80%]`); with `path` only.
        columns: Our column name -> the column(s) of the data; several names for `label` mean multi-label 0/1
            columns.
        label_names: All labels in order, or None: taken from the training rows.
        label_delimiter: Splits one text cell into several labels (`a|b`): multi-label.
        validation: Share of the training rows to split off for validation.
        test: Share of the training rows to split off for a test.
        group: Column of the data whose value says what belongs together: a group is split off whole, or not at all.
        time: Column of the data with dates or numbers: the newest rows are split off.
        sample_by: What of a .txt file is one row: `line`, `paragraph` or `document` (as in `datasets`).
        media_dir: Folder that the paths of images and sounds start at, absolute; None: the folder of the data file.
        on_bad_row: What happens to rows that cannot be used: `error`, or `skip` and count them.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    data_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    label_delimiter: str | None = None
    validation: float | None = None
    test: float | None = None
    group: str | None = None
    time: str | None = None
    sample_by: Literal["line", "paragraph", "document"] = "line"
    media_dir: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class PreparationSection:
    """`preparation`: what is done to texts and rows before they are learned, in this order whatever the file's.

    Attributes:
        fix_encoding: Mends texts that were decoded with the wrong encoding (`schÃ¶n`), by ftfy.
        strip_html: Takes HTML tags out and decodes character references (`&amp;`).
        normalization: The Unicode normal form: `NFC`, `NFKC` (also folds full width, ligatures, ...), `NFD`, `NFKD`.
        replace_urls: What stands in the place of each web address; an empty text takes it out.
        replace_emails: What stands in the place of each e-mail address.
        replace_mentions: What stands in the place of each `@name`.
        replace: Pairs of a regular expression (Python's `re`) and what stands in the place of each match.
        lowercase: Writes all letters small.
        stop_words: Words that are taken out: `english` (scikit-learn's list), or a list.
        collapse_whitespace: Makes one blank of each run of white space, none at the ends.
        deduplicate: Training rows whose texts repeat those of an earlier one are left out: `exact`, or also `near`.
        min_characters: The fewest characters of a training row's texts.
        max_characters: The most characters of a training row's texts.
        min_words: The fewest words of a training row's texts; a sign is a word where a script has no blanks.
        max_words: The most words of a training row's texts.
        min_tokens: The fewest tokens of a training row's texts, special ones included.
        max_tokens: The most tokens of a training row's texts.
        languages: Codes of the languages that training rows may be in (`en`, `zh`); others are left out.
        language_threshold: A row is left out if another language is at least so probable.
        decontaminate: Training rows whose texts are in validation or test are left out: `exact`, or also `near`.
        mixing_weights: For each training file as it is written in `dataset.data_files` how much of it is drawn.
        stopping_strategy: Drawing ends when the first file has no row left, or when all rows of all files were drawn.
        sample: At most so many training rows, drawn at random; below 1 a share of them.
    """

    fix_encoding: bool = False
    strip_html: bool = False
    normalization: Literal["NFC", "NFKC", "NFD", "NFKD"] | None = None
    replace_urls: str | None = None
    replace_emails: str | None = None
    replace_mentions: str | None = None
    replace: tuple[tuple[str, str], ...] = ()
    lowercase: bool = False
    stop_words: Literal["english"] | tuple[str, ...] | None = None
    collapse_whitespace: bool = False
    deduplicate: Literal["exact", "near"] | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    languages: tuple[str, ...] = ()
    language_threshold: float = 0.9
    decontaminate: Literal["exact", "near"] | None = None
    mixing_weights: Mapping[str, float] = field(default_factory=dict)
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    sample: float | None = None


TEXT_STEPS = (
    "fix_encoding",
    "strip_html",
    "normalization",
    "replace_urls",
    "replace_emails",
    "replace_mentions",
    "replace",
    "lowercase",
    "stop_words",
    "collapse_whitespace",
)
"""The words of `preparation` that rewrite texts, in the order in which they do; they run at predict time too."""


@dataclass(frozen=True)
class LossSection:
    """`loss`: what the training loss weighs.

    Attributes:
        class_weight: `balanced` (scikit-learn's formula), a weight for each label, or None.
        focal_gamma: Focal loss: how much less a row counts that the model is sure of, usually 2; None: cross-entropy.
        logit_adjustment: How much wider the margin of rare classes is in training (tau), usually 1; None: not at all.
        loss_type: Which loss of preference-tuning, `sigmoid` (DPO), `ipo`, `orpo`, ...; None: the task's first.
        beta: How far preference-tuning may lead away from the base: little at 0.5, far at 0.05; None: 0.1.
    """

    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    focal_gamma: float | None = None
    logit_adjustment: float | None = None
    loss_type: str | None = None
    beta: float | None = None


@dataclass(frozen=True)
class BalancingSection:
    """`balancing`: how often the training rows of each class are drawn, anew in each epoch.

    Attributes:
        strategy: `oversample` draws rare classes more often, `undersample` the others less often (another part of
            them in each epoch), `balanced` does both and keeps the number of rows; None: each row once.
        ratio: How many rows of the rarest class are drawn for each of the most frequent one; 1.0: as many.
    """

    strategy: Literal["oversample", "undersample", "balanced"] | None = None
    ratio: float = 1.0


@dataclass(frozen=True)
class DecisionSection:
    """`decision`: from which score on a label is predicted.

    Attributes:
        threshold: `tuned` (chosen on the validation rows after training), a number (of two classes: for the rarer
            one), or a number for each label (of two classes: for one of them); None: the likeliest class, or 0.5.
    """

    threshold: float | Literal["tuned"] | Mapping[str, float] | None = None


@dataclass(frozen=True)
class OptimizerSection:
    """`optimizer`: peft's own optimizers; without it `training_args.optim` decides.

    Attributes:
        name: `loraplus` (peft's create_loraplus_optimizer), `lorafa` (create_lorafa_optimizer), or None.
        loraplus_lr_ratio: Learning rate of B over that of A.
        loraplus_lr_embedding: Learning rate of LoRA on embeddings.
    """

    name: Literal["loraplus", "lorafa"] | None = None
    loraplus_lr_ratio: float = 16.0
    loraplus_lr_embedding: float = 1e-6


@dataclass(frozen=True)
class EarlyStoppingSection:
    """`early_stopping`: arguments of transformers' EarlyStoppingCallback.

    Attributes:
        early_stopping_patience: Evaluations without improvement until the run stops; None: never.
        early_stopping_threshold: How much better counts as better.
    """

    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


@dataclass(frozen=True)
class LeanSection:
    """`lean`: what makes a run faster, or need less memory; all that changes no result is on, and can be turned off.

    Attributes:
        cast_frozen: Whether frozen linear layers are cast to 16 bits once, not in every forward pass.
        lora_linear: Whether LoRA layers are computed by our own function, those that read the same input together.
        byte_dropout: Whether `lora_dropout` draws one byte a value, once for all layers that read the same input.
        dequantized_gb: How much of a base in 4 bits may be kept dequantised, in GB, for `lora_linear`.
        first_token: Whether an encoder's last layer goes on with the first token alone, if the head reads no other.
        rms_norm: Whether frozen RMSNorms are computed by our own function, which saves what they read and no more.
        swiglu: Whether the product in the middle of a SwiGLU block is computed by our own function, likewise.
        activation_limit_gb: As many layers are computed again in the backward pass as it takes for a batch to keep no
            more than so many GB (1e9 bytes) for it; left out: none.
        label_loss: Whether language models make logits at labelled positions alone, a few at a time.
        prefix_cache: Whether layers below the lowest one that is trained compute each row once, not in every epoch.
        prefix_cache_ram_gb: How much memory what they computed may take; more of it lies in a file that is mapped.
        prefix_cache_disk_gb: How much disk all runs together may take for it.
        max_tokens_per_batch: The most padded tokens of a training batch, beside its most rows; None: rows alone count.
        max_tokens_per_eval_batch: The same of an evaluation; None: as many as the largest training batch may have, at
            least 4,096.
    """

    cast_frozen: bool = True
    lora_linear: bool = True
    byte_dropout: bool = True
    dequantized_gb: float = 0.5
    first_token: bool = True
    rms_norm: bool = True
    swiglu: bool = True
    activation_limit_gb: float | None = None
    label_loss: bool = True
    prefix_cache: bool = True
    prefix_cache_ram_gb: float = 2.0
    prefix_cache_disk_gb: float = 10.0
    max_tokens_per_batch: int | None = None
    max_tokens_per_eval_batch: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One experiment, checked and resolved: every default filled in, every path absolute.

    Attributes:
        file: The YAML file it was read from.
        task: Name of the task.
        model: The base.
        peft_config: `peft_type` and the fields of that method's config class.
        dataset: The rows.
        preparation: What is done to texts and rows before they are learned.
        processor: Arguments of the tokenizer (or image or audio processor).
        training_args: Arguments of `TrainingArguments`, our defaults filled in; `output_dir` absolute.
        quantization_config: Arguments of `BitsAndBytesConfig`, or None.
        loss: Weights of the loss.
        balancing: How often rows of each class are drawn.
        decision: From which score on a label is predicted.
        optimizer: peft's optimizers.
        early_stopping: When to stop before the last epoch.
        lean: What makes a run faster, or need less memory.
        generation_config: Fields of transformers' GenerationConfig, for tasks that generate.
        augmentation: How training rows are varied, in the words of the task.
        checks: Gates and findings that are turned off (`false`), by name.
        offline: Never ask a hub.
    """

    file: Path
    task: str
    model: ModelSection
    peft_config: Mapping[str, Any]
    dataset: DatasetSection
    processor: Mapping[str, Any]
    training_args: Mapping[str, Any]
    quantization_config: Mapping[str, Any] | None = None
    preparation: PreparationSection = PreparationSection()
    loss: LossSection = LossSection()
    balancing: BalancingSection = BalancingSection()
    decision: DecisionSection = DecisionSection()
    optimizer: OptimizerSection = OptimizerSection()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    lean: LeanSection = LeanSection()
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)
    offline: bool = False

    @property
    def checks_off(self) -> frozenset[str]:
        """Names of the gates and findings that this recipe turns off."""
        return frozenset(name for name, wanted in self.checks.items() if not wanted)

    @property
    def makes_up_for_rare_classes(self) -> bool:
        """Whether weights, adjusted logits or draws make up for classes of unequal size."""
        loss = self.loss
        return loss.class_weight is not None or bool(loss.logit_adjustment) or self.balancing.strategy is not None
