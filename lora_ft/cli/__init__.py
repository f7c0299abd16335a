"""The command line; `lora_ft.cli.main` is where it begins."""
