"""Train quire-tiny from generated text and write it as a Hugging Face checkpoint folder."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from examples.train_tiny.export import export
from examples.train_tiny.model import TinyConfig, TinyLlama
from examples.train_tiny.text.corpus import training_documents
from examples.train_tiny.tokenizer import train_tokenizer

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "src" / "quire" / "assets" / "quire_tiny"


_ENCODE_AT_ONCE = 256


class Phase(NamedTuple):
    """A stretch of training with one shape of batch and one mixture of text."""

    seq_len: int
    num_rows: int
    num_steps: int
    mixture: str


PHASES = [
    Phase(256, 16, 1000, "broad"),
    Phase(512, 8, 300, "exact"),
    Phase(512, 8, 130, "sums"),
    Phase(2048, 2, 30, "sums"),
]
NUM_STEPS = sum(phase.num_steps for phase in PHASES)


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults make the model that ships with Quire.

    Every step sees 4096 tokens. `checkpoint_every` is in steps, `weight_decay` is for matrices only.
    """

    seed: int = 1
    num_steps: int = NUM_STEPS
    warmup_steps: int = 100
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-4
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    tokenizer_documents: int = 20000
    checkpoint_every: int = 300
    enable_compile: bool = True
    out: Path = DEFAULT_OUT
    resume: Path | None = None
    start_step: int = 0


def encoded_documents(tokenizer: Tokenizer, seed: int, mixture: str) -> Iterator[list[int]]:
    """Token ids of each training document, without end; the special tokens stand in the text already."""
    documents = training_documents(seed, mixture)
    while True:
        batch = list(islice(documents, _ENCODE_AT_ONCE))
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            yield encoding.ids


def packed_batches(documents: Iterator[list[int]], num_rows: int, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows filled with whole documents; each row starts with one, and only its last may be cut.

    Args:
        documents: Token ids per document. Consumed.
        num_rows: Rows per batch.
        seq_len: Tokens per row.

    Yields:
        Inputs and targets, both [num_rows, seq_len], int64, the targets one token ahead.
    """
    while True:
        rows: list[list[int]] = []
        for _ in range(num_rows):
            row: list[int] = []
            while len(row) <= seq_len:
                row.extend(next(documents))
            rows.append(row[: seq_len + 1])
        tokens = torch.tensor(rows, dtype=torch.int64)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warmup, then a cosine from `learning_rate` down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: TinyLlama, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices and none on the norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def describe_training() -> str:
    """A sentence on the default training run, for the model card."""
    config = TrainConfig()
    num_tokens = sum(phase.num_steps * phase.num_rows * phase.seq_len for phase in PHASES)
    lengths = ", ".join(f"{phase.num_steps} in rows of {phase.seq_len}" for phase in PHASES)
    return (
        f"{config.num_steps} steps, {num_tokens / 1e6:.1f} million tokens ({lengths}); AdamW, learning rate "
        f"{config.learning_rate} with warmup and cosine decay, weight decay {config.weight_decay}, bfloat16 autocast."
    )


class Trainer:
    """One training run: the model, its optimizer, its stream of documents and the step it has reached."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.tokenizer = self._make_tokenizer()
        self.model = TinyLlama(TinyConfig())
        self.model.init_weights(torch.Generator().manual_seed(config.seed))
        self.optimizer = build_optimizer(self.model, config)
        self.step = config.start_step
        if config.resume is not None:
            self.model.load_state_dict(load_file(config.resume / "model.safetensors"))
        self.started_s = time.monotonic()
        self.num_tokens = 0

    def _make_tokenizer(self) -> Tokenizer:
        documents = islice(training_documents(self.config.seed), self.config.tokenizer_documents)
        return train_tokenizer(documents, TinyConfig().vocab_size)

    def run(self) -> None:
        """Train through all phases and write the model into `config.out`."""
        export(self.model, self.tokenizer, self.config.out)
        first_step = 0
        for index, phase in enumerate(PHASES):
            if self.step < min(first_step + phase.num_steps, self.config.num_steps):
                self._run_phase(phase, self.config.seed + index, first_step)
            first_step += phase.num_steps
        export(self.model, self.tokenizer, self.config.out)

    def _run_phase(self, phase: Phase, seed: int, first_step: int) -> None:
        """The steps of one phase that are still to do; `first_step` is where the whole phase begins."""
        loss_of = self.model.loss
        if self.config.enable_compile:
            torch.compiler.reset()
            loss_of = torch.compile(self.model.loss, dynamic=False)
        documents = encoded_documents(self.tokenizer, seed, phase.mixture)
        batches = packed_batches(documents, phase.num_rows, phase.seq_len)
        end_step = min(first_step + phase.num_steps, self.config.num_steps)
        for inputs, targets in islice(batches, self.step - first_step, end_step - first_step):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(inputs, targets)
            self._update(loss)
            self.num_tokens += inputs.numel()
            self._report(phase, loss)

    def _update(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _report(self, phase: Phase, loss: Tensor) -> None:
        if self.step % 20 == 0 or self.step == 1:
            elapsed_s = time.monotonic() - self.started_s
            print(
                f"step {self.step:5d}/{self.config.num_steps}  seq_len {phase.seq_len:4d}  loss {loss.item():.3f}  "
                f"{self.num_tokens / elapsed_s:.0f} tokens/s  {elapsed_s / 60:.1f} min",
                flush=True,
            )
        if self.step % self.config.checkpoint_every == 0:
            export(self.model, self.tokenizer, self.config.out)


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """Command line to `TrainConfig`; each option is named like its field."""
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny", description=__doc__)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="fixes the text and the weights")
    parser.add_argument("--num-steps", type=int, default=defaults.num_steps, help="steps of 4096 tokens")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--checkpoint-every", type=int, default=defaults.checkpoint_every, help="in steps")
    parser.add_argument("--no-compile", dest="enable_compile", action="store_false", help="do not use torch.compile")
    parser.add_argument("--resume", type=Path, help="folder to take the weights from (the optimizer starts anew)")
    parser.add_argument("--start-step", type=int, default=defaults.start_step, help="with --resume: steps done already")
    parser.add_argument("--out", type=Path, default=defaults.out, help="folder of the checkpoint")
    return TrainConfig(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> None:
    """Train with the options of the command line."""
    config = parse_arguments(arguments)
    config.out.mkdir(parents=True, exist_ok=True)
    Trainer(config).run()
