"""lora_ft: parameter-efficient fine-tuning from one recipe to one trusted adapter."""

from lora_ft.torchvision_guard import install

__version__ = "0.1.0"

install()  # the one effect at import: it must be there before anybody imports transformers
