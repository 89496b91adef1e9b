"""Recorded logits: what an engine computed for some prompts, to be computed again, bit for bit.

A recording is a file beside the plan, `recording.json`. It holds the hash of every row of logits and the largest of
them, so it stays small and still tells how far off a row is that differs.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from quire.core.config import SchedulerConfig
from quire.core.request import NewRow, ScheduledRow, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.plan.device import Device, this_device
from quire.plan.engine_directory import RECORDING
from quire.plan.plan import Plan
from quire.plan.storage.hashed_file import read_hashed, write_hashed
from quire.runner.model_runner import make_runner

FORMAT = 1
_PROMPT_LENS = (5, 17, 40)
_NUM_TOKENS = 8
_NUM_LARGEST = 5
_BLOCK_SIZE = 16


class RecordedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The logits after one token.

    Attributes:
        hash: SHA-256 of their bytes.
        largest: (id, logit) of the largest, the first being the token that follows.
    """

    hash: str
    largest: tuple[tuple[int, float], ...]


class RecordedSequence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and what followed greedily.

    Attributes:
        prompt_token_ids: The prompt.
        rows: The logits after the prompt, and after every further token.
    """

    prompt_token_ids: tuple[int, ...]
    rows: tuple[RecordedRow, ...]


class Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine computed.

    Attributes:
        device: Where.
        sequences: Each computed alone.
    """

    device: Device
    sequences: tuple[RecordedSequence, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """How a recording came out again.

    Attributes:
        num_rows: Rows of logits compared.
        num_equal: How many had the same bits.
        largest_difference: Between recorded logits and those of the replay.
        is_same_device: Whether the recording is from this device, where all bits must be the same.
        tokens_differ_at: (sequence, token) where the first other token came out, None if nowhere.
    """

    num_rows: int
    num_equal: int
    largest_difference: float
    is_same_device: bool
    tokens_differ_at: tuple[int, int] | None


def record(plan: Plan, device: str = "cpu") -> Recording:
    """Compute some seeded prompts greedily, each alone.

    Args:
        plan: Of an engine.
        device: Kind of device.
    """
    longest = min(max(_PROMPT_LENS), plan.spec.max_position_embeddings - _NUM_TOKENS)
    rng = random.Random(0)
    prompts = [[rng.randrange(plan.spec.vocab_size) for _ in range(min(n, longest))] for n in _PROMPT_LENS]
    run = _Run(plan, prompts, device)
    return Recording(this_device(device), tuple(run.alone(prompt) for prompt in prompts))


def replay(plan: Plan, recording: Recording, device: str = "cpu") -> Replay:
    """Compute the prompts of a recording again: each alone, and all together.

    Args:
        plan: The same engine.
        recording: From `record`, here or elsewhere.
        device: Kind of device.

    Returns:
        The comparison; rows after the first token that differs are not compared, since they have another past.
    """
    prompts = [list(sequence.prompt_token_ids) for sequence in recording.sequences]
    run = _Run(plan, prompts, device)
    rounds = [[run.alone(prompt) for prompt in prompts], run.together(prompts)]
    num_rows, num_equal, largest, differ = 0, 0, 0.0, None
    for found in rounds:
        for index, (expected, got) in enumerate(zip(recording.sequences, found, strict=True)):
            for place, (a, b) in enumerate(zip(expected.rows, got.rows, strict=True)):
                num_rows, num_equal = num_rows + 1, num_equal + (a.hash == b.hash)
                largest = max(largest, _difference(a, b))
                if a.largest[0][0] != b.largest[0][0]:
                    differ = differ or (index, place)
                    break
    return Replay(num_rows, num_equal, largest, recording.device == this_device(device), differ)


def _difference(a: RecordedRow, b: RecordedRow) -> float:
    """Return the largest difference among the logits that both hold."""
    theirs = dict(b.largest)
    return max((abs(value - theirs[token]) for token, value in a.largest if token in theirs), default=float("inf"))


class _Run:
    """A runner that keeps the logits of each step."""

    def __init__(self, plan: Plan, prompts: Sequence[Sequence[int]], device: str) -> None:
        lengths = [len(prompt) + _NUM_TOKENS for prompt in prompts]
        num_blocks = sum(-(-length // _BLOCK_SIZE) for length in lengths) + 1
        config = SchedulerConfig(
            max_model_len=max(lengths),
            max_num_seqs=len(prompts),
            max_num_batched_tokens=sum(lengths),
            block_size=_BLOCK_SIZE,
            num_blocks=num_blocks,
            max_num_logits=len(prompts),
        )
        self._logits: list[torch.Tensor] = []
        self._runner = make_runner(plan, config, device, enforce_eager=True, on_logits=self._keep)

    def _keep(self, logits: torch.Tensor) -> None:
        self._logits.append(logits.cpu())

    def alone(self, prompt: Sequence[int]) -> RecordedSequence:
        """Compute one prompt."""
        return self.together([prompt])[0]

    def together(self, prompts: Sequence[Sequence[int]]) -> list[RecordedSequence]:
        """Compute prompts in one batch."""
        rows: list[list[RecordedRow]] = [[] for _ in prompts]
        for step in _steps(prompts):
            self._logits.clear()
            self._runner.execute(step).result()
            for place, _ in enumerate(prompts):
                rows[place].append(_recorded(self._logits[0][place]))
        return [RecordedSequence(tuple(prompt), tuple(found)) for prompt, found in zip(prompts, rows, strict=True)]


def _steps(prompts: Sequence[Sequence[int]]) -> Sequence[SchedulerOutput]:
    """Return what a scheduler would ask for: all prompts, then token by token."""
    params, first_block, new = SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS), 1, []
    for row_id, prompt in enumerate(prompts):
        count = -(-(len(prompt) + _NUM_TOKENS) // _BLOCK_SIZE)
        blocks = tuple(range(first_block, first_block + count))
        new.append(NewRow(row_id, tuple(prompt), len(prompt), blocks, params))
        first_block += count
    steps = []
    for step in range(_NUM_TOKENS):
        rows = tuple(
            ScheduledRow(i, 0 if step == 0 else len(p) + step - 1, len(p) if step == 0 else 1, is_sampled=True)
            for i, p in enumerate(prompts)
        )
        steps.append(SchedulerOutput(rows))
    steps[0] = SchedulerOutput(
        steps[0].rows, tuple(new), removed_row_ids=tuple(range(len(new))), fresh_block_ids=tuple(range(1, first_block))
    )
    return steps


def _recorded(logits: torch.Tensor) -> RecordedRow:
    digest = hashlib.sha256(logits.contiguous().view(torch.uint8).numpy().data).hexdigest()
    values, ids = logits.float().sort(descending=True, stable=True)
    return RecordedRow(digest, tuple(zip(ids[:_NUM_LARGEST].tolist(), values[:_NUM_LARGEST].tolist(), strict=True)))


def write_recording(root: Path, recording: Recording) -> Path:
    """Write a recording into an engine directory; returns its path."""
    write_hashed(root / RECORDING, recording, FORMAT)
    return root / RECORDING


def read_recording(root: Path) -> Recording:
    """Read the recording of an engine directory.

    Raises:
        PlanError: There is none, or it is damaged.
    """
    hint = "Make it with `quire verify ENGINE --record`."
    return read_hashed(root / RECORDING, Recording, FORMAT, "recorded logits", hint)
