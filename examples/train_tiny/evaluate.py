"""Measure a trained folder: held-out perplexity and entropy per domain, completions, and the model card from them."""

from __future__ import annotations

import argparse
import math
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from examples.train_tiny.card import write_card
from examples.train_tiny.model import TinyConfig, TinyLlama
from examples.train_tiny.text.chat_format import BOS, EOS, IM_END, render_chat
from examples.train_tiny.text.corpus import DOMAINS, held_out_documents
from examples.train_tiny.train import DEFAULT_OUT, describe_training

HELD_OUT_SEED = 1_000_003
PROMPTS = [
    "The capital of France is",
    "Hello, my name is",
    "The future of AI is",
    "2 + 3 =",
    "Once upon a time",
    "The opposite of hot is",
]
QUESTIONS = [
    "What is the capital of Italy?",
    "What is 4 + 5?",
    "Give me a JSON object with the name and age of Tom.",
    "List three colours as a JSON array.",
    "What is your name?",
    "Tell me a story about Anna.",
]


class Score(NamedTuple):
    """What a model makes of some text: tokens counted, perplexity per token, mean entropy of its guesses in nats."""

    num_tokens: int
    perplexity: float
    entropy: float


def load_model(folder: Path) -> TinyLlama:
    """The model of a checkpoint folder, its bfloat16 weights held in float32 so that only the weights are rounded."""
    model = TinyLlama(TinyConfig())
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval()


@torch.inference_mode()
def score(model: TinyLlama, documents: list[list[int]]) -> Score:
    """Perplexity and entropy over the token ids of `documents`, each read alone and cut at the model's length."""
    total_loss, total_entropy, num_tokens = 0.0, 0.0, 0
    for ids in documents:
        tokens = torch.tensor([ids[: model.config.max_position_embeddings + 1]])
        log_probabilities = F.log_softmax(model(tokens[:, :-1])[0].float(), dim=-1)
        total_loss += F.nll_loss(log_probabilities, tokens[0, 1:], reduction="sum").item()
        total_entropy -= (log_probabilities.exp() * log_probabilities).sum().item()
        num_tokens += tokens.shape[1] - 1
    return Score(num_tokens, math.exp(total_loss / num_tokens), total_entropy / num_tokens)


def score_domains(model: TinyLlama, tokenizer: Tokenizer, num_documents: int) -> dict[str, Score]:
    """A score per domain over its first `num_documents` held-out documents, and one named `all` over all of them."""
    everything: list[list[int]] = []
    scores: dict[str, Score] = {}
    for domain in DOMAINS:
        count = num_documents // 10 if domain == "long_story" else num_documents
        texts = list(islice(held_out_documents(domain, HELD_OUT_SEED), count))
        documents = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        scores[domain] = score(model, documents)
        everything.extend(documents)
    return scores | {"all": score(model, everything)}


@torch.inference_mode()
def complete(
    model: TinyLlama, tokenizer: Tokenizer, prompt: str, max_tokens: int = 40, generator: torch.Generator | None = None
) -> str:
    """Continue `prompt` until a stop token or `max_tokens`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompt: Text that begins with `BOS`; special tokens may stand in it.
        max_tokens: The most tokens to add.
        generator: None for greedy decoding, else the source of draws at temperature 0.8 and top_p 0.95.
    """
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    stops = {tokenizer.token_to_id(EOS), tokenizer.token_to_id(IM_END)}
    new_ids: list[int] = []
    while len(new_ids) < max_tokens:
        logits = model(torch.tensor([ids + new_ids]))[0, -1]
        token = int(logits.argmax()) if generator is None else _sample(logits, generator)
        if token in stops:
            break
        new_ids.append(token)
    return tokenizer.decode(new_ids, skip_special_tokens=False)


def _sample(logits: torch.Tensor, generator: torch.Generator, temperature: float = 0.8, top_p: float = 0.95) -> int:
    probabilities, order = (logits / temperature).softmax(dim=-1).sort(descending=True)
    probabilities[probabilities.cumsum(dim=-1) - probabilities > top_p] = 0.0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def sample_outputs(model: TinyLlama, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Pairs of prompt and greedy answer, for texts and for chats."""
    pairs = [(prompt, complete(model, tokenizer, BOS + prompt)) for prompt in PROMPTS]
    for question in QUESTIONS:
        prompt = render_chat([{"role": "user", "content": question}], add_generation_prompt=True)
        pairs.append((f"user: {question}", complete(model, tokenizer, prompt)))
    return pairs


def main(arguments: list[str] | None = None) -> None:
    """Print the scores and samples of a folder, and with `--card` write them into its model card."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_OUT, help="checkpoint folder")
    parser.add_argument("--num-documents", type=int, default=200, help="held-out documents per domain")
    parser.add_argument("--card", action="store_true", help="write README.md into the folder")
    parser.add_argument("--note", default="", help="a sentence for the card on how this run differed from the default")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(options.model), Tokenizer.from_file(str(options.model / "tokenizer.json"))
    scores = score_domains(model, tokenizer, options.num_documents)
    for domain, (num_tokens, perplexity, entropy) in scores.items():
        print(f"{domain:14s} {num_tokens:7d} tokens  perplexity {perplexity:6.2f}  entropy {entropy:.2f} nats")
    outputs = sample_outputs(model, tokenizer)
    for prompt, answer in outputs:
        print(f"\n> {prompt}\n{answer}")
    for seed, prompt in enumerate(PROMPTS[1:3] * 3):
        generator = torch.Generator().manual_seed(seed)
        print(f"\nsampled, seed {seed}> {prompt}{complete(model, tokenizer, BOS + prompt, 40, generator)}")
    if options.card:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        write_card(options.model, scores, outputs, num_parameters, f"{describe_training()} {options.note}".strip())


if __name__ == "__main__":
    main()
