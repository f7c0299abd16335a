"""`python -m lora_ft`, the form that `accelerate launch -m` takes."""

from lora_ft.cli.main import main

if __name__ == "__main__":
    main()
