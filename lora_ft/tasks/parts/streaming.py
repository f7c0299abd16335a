"""Generated text piece by piece, as it comes: the same characters that a prediction has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.tasks.parts.generation import cut_at, generate, text_of
from lora_ft.tasks.parts.problem import Problem

if TYPE_CHECKING:
    import torch

UNFINISHED = "\ufffd"
"""What a character is decoded to whose last bytes are still to come."""


def pieces(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    problem: Problem,
    *,
    ends: Iterable[int] = (),
    stops: Sequence[str] = (),
    cut: Sequence[str] = (),
) -> Iterator[str]:
    """The answer to one prompt, piece by piece; together they are what a prediction has.

    Args:
        model: A model that generates.
        inputs: Of one row.
        problem: Its generation settings, tokenizer and seed.
        ends: Tokens that end an answer.
        stops: Texts that end an answer.
        cut: Texts that are no part of an answer, nor what follows them.

    Raises:
        InputError: A beam search, which knows its text only at its end.
    """
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    import torch

    beams = int(problem.generation.get("num_beams", 1))
    if beams > 1:
        raise InputError(
            f"--stream: generation_config.num_beams = {beams} searches for the whole answer at once. "
            "Leave out --stream, or set num_beams to 1"
        )
    streamer = _Streamer(problem)
    left = Event()
    kind = inputs["input_ids"].device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run() -> None:
        with torch.no_grad(), torch.autocast(kind, enabled=autocast[0], dtype=autocast[1]):
            generate(model, inputs, problem, ends=ends, stops=stops, streamer=streamer, stopping=left.is_set)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        done.add_done_callback(lambda _: streamer.end())  # also after an error: nobody waits for ever
        try:
            yield from until(streamer, cut)
        finally:
            left.set()
        done.result()


def until(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces of a text up to the first stop string; what may be the beginning of one is held back.

    Args:
        texts: The pieces.
        stops: The stop strings.
    """
    held = ""
    for text in texts:
        held += text
        cut = cut_at(held, stops)
        if len(cut) < len(held):
            if cut:
                yield cut
            return
        kept = max((_overlap(held, stop) for stop in stops), default=0)
        if len(held) > kept:
            yield held[: len(held) - kept]
            held = held[len(held) - kept :]
    if held:
        yield held


class _Streamer:
    """Turns tokens into text as they come; an iterator of new characters, for another thread."""

    def __init__(self, problem: Problem) -> None:
        from queue import SimpleQueue

        self.problem = problem
        self.ids: list[int] = []
        self.said = 0
        self.prompt = True
        self.queue: SimpleQueue[str | None] = SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """Gets the prompt first, then token after token."""
        if self.prompt:
            self.prompt = False
            return
        self.ids += value.flatten().tolist()
        text = text_of(self.ids, self.problem)
        if not text.endswith(UNFINISHED):
            self.queue.put(text[self.said :])
            self.said = len(text)

    def end(self) -> None:
        """Nothing more comes."""
        self.queue.put(text_of(self.ids, self.problem)[self.said :])
        self.queue.put(None)

    def __iter__(self) -> Iterator[str]:
        while (text := self.queue.get()) is not None:
            yield text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
