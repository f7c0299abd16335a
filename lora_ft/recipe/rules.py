"""The rules across sections: each one a small function with a remedy in its message, all listed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lora_ft.recipe import (
    rules_adapter,
    rules_augmentation,
    rules_columns,
    rules_data,
    rules_labels,
    rules_model,
    rules_preparation,
    rules_ranges,
    rules_training,
)
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Fault

Rule = Callable[[Draft], Iterator[Fault]]

RULES: tuple[Rule, ...] = (
    rules_ranges.value_is_in_range,
    rules_model.half_precision_has_a_device,
    rules_model.one_half_precision,
    rules_model.tf32_has_a_device,
    rules_model.one_quantization,
    rules_model.some_quantization,
    rules_model.bnb_4bit_options_need_4bit,
    rules_model.folder_has_no_revision,
    rules_model.base_is_of_a_known_family,
    rules_model.texts_leave_room_for_tokens,
    rules_model.texts_fit_the_base,
    rules_model.output_is_outside_the_base,
    rules_adapter.peft_optimizer_needs_lora,
    rules_adapter.one_optimizer,
    rules_adapter.loraplus_options_need_loraplus,
    rules_adapter.layers_need_module_names,
    rules_adapter.layers_pattern_needs_layers,
    rules_adapter.target_modules_name_something,
    rules_adapter.initial_weights_and_their_config,
    rules_adapter.lora_bias_is_plain_lora,
    rules_adapter.dora_without_megatron,
    rules_training.sampling_options_need_sampling,
    rules_training.metric_is_computed,
    rules_training.direction_fits_the_metric,
    rules_training.evaluation_has_rows,
    rules_training.best_model_is_saved_when_evaluated,
    rules_training.steps_are_multiples,
    rules_training.early_stopping_has_a_best_model,
    rules_training.scheduler_has_an_evaluation,
    rules_training.prefetch_has_workers,
    rules_training.one_name_for_checkpointing,
    rules_training.one_measure_of_checkpointing,
    rules_training.checkpointing_is_not_reentrant,
    rules_training.token_budget_cuts_the_batches,
    rules_data.one_source,
    rules_data.options_fit_the_source,
    rules_data.sample_by_has_texts,
    rules_data.media_dir_has_media,
    rules_data.there_is_a_training_split,
    rules_data.a_split_comes_from_one_place,
    rules_data.shares_leave_training_rows,
    rules_data.a_file_is_in_one_split,
    rules_preparation.text_steps_have_free_texts,
    rules_preparation.row_steps_have_texts,
    rules_preparation.replacements_compile,
    rules_preparation.lengths_leave_room,
    rules_preparation.languages_are_codes,
    rules_preparation.decontamination_has_rows,
    rules_preparation.sample_is_rows_or_a_share,
    rules_preparation.mixing_weights_name_the_training_files,
    rules_preparation.keys_split_shares_off,
    rules_augmentation.variants_are_made_somehow,
    rules_augmentation.synonyms_have_a_file,
    rules_augmentation.back_translation_names_a_function,
    rules_augmentation.augmented_rows_have_a_text,
    rules_columns.a_column_is_read_once,
    rules_columns.columns_belong_together,
    rules_columns.columns_exist,
    rules_labels.label_options_have_labels,
    rules_labels.label_names_are_several_and_different,
    rules_labels.several_labels_in_one_way,
    rules_labels.several_labels_fit_the_problem,
    rules_labels.problem_type_is_the_tasks,
    rules_labels.class_options_have_classes,
    rules_labels.rare_classes_are_made_up_for_once,
    rules_labels.balancing_ratio_has_a_strategy,
    rules_labels.balancing_draws_the_rows,
    rules_labels.threshold_can_be_used,
    rules_labels.class_weight_names_labels,
    rules_labels.loss_type_is_the_tasks,
    rules_labels.label_smoothing_has_one_label,
)


def broken_rules(draft: Draft) -> list[Fault]:
    """Runs every rule.

    Args:
        draft: A recipe whose values have the right types; any of them may be absent.

    Returns:
        What the rules found.
    """
    return [fault for rule in RULES for fault in rule(draft)]
