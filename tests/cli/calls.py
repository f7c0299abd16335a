"""How the tests call `lora-ft`: the type of the fixture `run`, and a fresh process that must refuse at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]  # the fixture of tests/cli/conftest.py

CODE = """\
import json, sys
from lora_ft.cli.main import main
_, commands, *allowed = sys.argv
heavy = {"torch", "transformers", "peft", "datasets", "onnx"} - set(allowed)
for words in json.loads(commands):
    sys.argv = ["lora-ft", *words]
    try:
        main()
    except SystemExit as leave:
        print("END", leave.code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def refused(*commands: Sequence[object], allowed: Sequence[str] = ()) -> list[str]:
    """What is said to each command; each must end with 2, print nothing else and import nothing heavy but `allowed`."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    words = [sys.executable, "-c", CODE, given, *allowed]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    told = done.stderr.split("END 2 []\n")
    assert told.pop() == "", done.stderr
    assert len(told) == len(commands), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return told
