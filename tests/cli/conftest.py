"""Fixtures of the tests of the command line: `lora-ft` called in this process."""

from __future__ import annotations

import io
import sys

import pytest

from lora_ft.cli.main import main
from tests.cli.calls import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Takes the words after `lora-ft`, and what is piped into it; gives exit code, standard output, standard error.

    A file whose commands share words has a `run` of its own that adds them.
    """

    def call(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["lora-ft", *map(str, arguments)])
            if stdin is not None:
                patch.setattr(sys, "stdin", io.StringIO(stdin))
            try:
                main()
            except SystemExit as leave:
                code = int(leave.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
