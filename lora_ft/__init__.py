"""lora_ft: parameter-efficient fine-tuning from one recipe to one trusted adapter."""

__version__ = "0.1.0"
