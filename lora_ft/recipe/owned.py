"""Upstream fields that a recipe does not write, each with the remedy; and fields that upstream renamed."""

from __future__ import annotations

DERIVED = "It follows from the recipe and is written into the adapter folder. Leave it out"

OWNED: dict[str, dict[str, str]] = {
    "peft_config": {
        "task_type": f"the task decides it. {DERIVED}",
        "base_model_name_or_path": f"it is model.pretrained_model_name_or_path. {DERIVED}",
        "revision": "the base's revision is model.revision. Write it there",
        "inference_mode": "it is set when the adapter is loaded. Leave it out",
        "peft_version": f"it is the installed peft. {DERIVED}",
        "auto_mapping": f"peft fills it in for a base without a task type. {DERIVED}",
        "runtime_config": "peft cannot take it from a file and does not save it. Leave it out",
    },
    "training_args": {
        "remove_unused_columns": "the task decides which columns the model gets. Leave it out",
        "label_names": "the task names the label tensors. The labels' own names go into dataset.label_names",
        "length_column_name": "the task writes the column `length`. Leave it out",
        "include_for_metrics": "the metrics read predictions and labels only. Leave it out",
        "batch_eval_metrics": "the metrics are computed over all rows at once. Leave it out",
        "eval_do_concat_batches": "the metrics are computed over all rows at once. Leave it out",
        "eval_use_gather_object": "the metrics gather tensors. Leave it out",
        "resume_from_checkpoint": "going on is said on the command line: `lora-ft train RECIPE --resume`",
        "restore_callback_states_from_checkpoint": "going on restores all of a run. Leave it out",
        "ignore_data_skip": "going on seeks: no row is read again to be skipped. Leave it out",
        "enable_jit_checkpoint": "SIGTERM always saves a checkpoint. Leave it out",
        "overwrite_output_dir": (
            "a finished adapter is replaced only by `lora-ft train RECIPE --overwrite`. Give another "
            "output_dir, or go on with --resume"
        ),
        "parallelism_config": "`accelerate launch --config_file ...` sets it. Leave it out",
    },
}

RENAMED: dict[str, dict[str, str]] = {
    "training_args": {
        "evaluation_strategy": "It is called eval_strategy now",
        "warmup_ratio": "Write warmup_steps, which takes a fraction of all steps below 1",
        "group_by_length": "Write train_sampling_strategy: group_by_length",
        "no_cuda": "It is called use_cpu now",
        "logging_dir": "The logs are written into output_dir. Leave it out",
        "save_safetensors": "Adapters are always saved as safetensors. Leave it out",
        "half_precision_backend": "accelerate chooses the backend. Leave it out",
        "jit_mode_eval": "It is gone. Leave it out",
        "per_gpu_train_batch_size": "It is called per_device_train_batch_size now",
        "per_gpu_eval_batch_size": "It is called per_device_eval_batch_size now",
    },
    "model": {"torch_dtype": "It is called dtype now", "name_or_path": "Write pretrained_model_name_or_path"},
}
"""Used only where the installed class does not know the name."""
