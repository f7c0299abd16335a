"""Makes the golden base and adapter anew: python -m tests.golden.make (only after a change of the folder's format)."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.serve.predict import predict, text_rows
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read, write_recipe

FOLDER = Path(__file__).parent
TEXTS = ("the book was great", "awful pan", "this cable is perfect", "")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # the manifest names this place, so it must be nobody's home
        base = make_base(Path(scratch) / "base")
        recipe = write_recipe(Path(scratch), base)
        result = train(read(recipe), RunOptions(command="python -m tests.golden.make"))
        for made, name in ((base, "base"), (result.folder, "adapter")):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            shutil.copytree(made, FOLDER / name)
    opened = open_adapter(FOLDER / "adapter", OpenOptions(base=str(FOLDER / "base"), offline=True))
    answers = list(predict(opened, text_rows(TEXTS)))
    (FOLDER / "answers.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
