"""The first steps of ours against plain peft on the same batches, in float32 and without dropout.

    python -m benchmarks.lean.same_curve RECIPE [--steps 50] [section.key=value ...]

Prints one line of JSON: both loss curves and their largest difference. Ours is the trainer that the recipe makes, with
all of its `lean` section: its batches, loss and optimizer. Plain is the base as transformers loads it, peft's layers,
the loss that the model returns, torch's AdamW: nothing of lora_ft but the batches and the first weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from collections.abc import Callable, Mapping
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from lora_ft.assemble.fresh import build
from lora_ft.assemble.prepare import prepare
from lora_ft.cli.environment import read_checked
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import training_arguments
from lora_ft.train.checkpoints import Start
from lora_ft.train.interrupt import Interruption
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.setup import make_trainer

AUTO = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
}
Batch = Mapping[str, torch.Tensor]


def our_trainer(recipe: Recipe, *, steps: int) -> ResumableTrainer:
    """The trainer of a recipe, before its first step."""
    prepared = prepare(recipe)
    arguments, precision = training_arguments(prepared)
    fresh = build(prepared, precision=precision, total_steps=steps)
    start = Start(checkpoint=None)
    return make_trainer(prepared, fresh, arguments, start=start, made_of={}, interruption=Interruption())


def plain_model(recipe: Recipe, ours: Any, *, config: Mapping[str, Any]) -> Any:
    """The base without dropout, and peft's own layers by the same configuration, with the first weights of ours."""
    lora = copy.deepcopy(ours.peft_config["default"])
    task_type = str(lora.task_type)
    base = AUTO[task_type].from_pretrained(
        recipe.model.pretrained_model_name_or_path, **{**config, "dtype": torch.float32}
    )
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout", "hidden_dropout_prob"):
        if name in vars(base.config):
            setattr(base.config, name, 0.0)
    model = get_peft_model(base, lora)
    set_peft_model_state_dict(model, get_peft_model_state_dict(ours))
    return model.train()


def curve(
    model: Any, batches: list[Batch], loss_of: Callable[[Batch], torch.Tensor], optimizer: torch.optim.Optimizer
) -> list[float]:
    """The loss of each step; gradients are clipped to a norm of 1, the learning rate is constant."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def curves(recipe: Recipe, *, steps: int) -> tuple[list[float], list[float]]:
    """The losses of ours and of plain peft, `steps` each."""
    trainer = our_trainer(recipe, steps=steps)
    ours = trainer.model
    loader = chain.from_iterable(repeat(list(trainer.get_train_dataloader())))
    batches = list(islice(loader, steps))
    plain = plain_model(recipe, ours, config=trainer.prepared.task.model_config(trainer.prepared.problem))
    decay = float(trainer.args.weight_decay)
    plain_optimizer = torch.optim.AdamW(
        [one for one in plain.parameters() if one.requires_grad], lr=trainer.args.learning_rate, weight_decay=decay
    )
    by_peft = curve(plain, batches, lambda batch: plain(**batch).loss, plain_optimizer)
    ours.train()
    items = trainer.prepared.task.totals
    by_us = curve(
        ours,
        batches,
        lambda batch: trainer.compute_loss(ours, batch, num_items_in_batch=items(batch)),
        trainer.create_optimizer(),
    )
    return by_us, by_peft


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    recipe = read_checked(Path(options.recipe), options.overrides)
    ours, plain = curves(recipe, steps=options.steps)
    largest = max(abs(one - other) for one, other in zip(ours, plain, strict=True))
    print(json.dumps({"ours": ours, "plain": plain, "largest_difference": largest}))


if __name__ == "__main__":
    main()
