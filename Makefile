# Two commands do everything: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE := recipes/text-classification/minilm-shop_reviews-lora.yaml
ADAPTER := runs/minilm-shop_reviews-lora/adapter
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check bench clean

demo: $(VENV)/.demo
	@echo "== 1. train the sentiment adapter ($(RECIPE))"
	@$(BIN)/lora-ft train $(RECIPE) --overwrite
	@echo "== 2. compare it with its base on the test split"
	@$(BIN)/lora-ft evaluate $(ADAPTER) --offline
	@echo "== 3. predict new reviews"
	@$(BIN)/lora-ft predict $(ADAPTER) --offline \
		"Arrived cracked, and nobody answers the phone." \
		"My third pair. That should tell you everything." \
		"Not once did it let me down, and I cook every day."
	@echo "== 4. verify it: files, base, tensors, probe"
	@$(BIN)/lora-ft verify $(ADAPTER) --offline
	@echo
	@echo "The adapter:    $(ADAPTER) (weights, manifest, metrics, model card)"
	@echo "The curves:     $(BIN)/tensorboard --logdir runs"
	@echo "Another run:    $(BIN)/lora-ft train $(RECIPE) training_args.output_dir=../../runs/second peft_config.r=16"
	@echo "Your own data:  $(BIN)/lora-ft init text-classification > my.yaml"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m slow --timeout 1800

check: $(VENV)/.dev
	$(BIN)/ruff format --check lora_ft tests benchmarks
	$(BIN)/ruff check lora_ft tests benchmarks
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.lean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
