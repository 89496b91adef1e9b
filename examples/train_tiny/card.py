"""The model card of quire-tiny, written from measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# quire-tiny

A Llama of 5.8 million parameters that knows a handful of facts and writes simple English. It exists so that an
inference engine can be shown, tested and measured with a real checkpoint, offline, in a repository.

## How it was made

`python -m examples.train_tiny` in Quire's repository: one command, one seed, one CPU thread, under an hour, and no
download.

- **Data.** Every word is generated from a seed by templates in `examples/train_tiny/`: children's stories, letters,
  introductions, short essays, facts (capitals, animals, colours, the calendar, opposites, greetings), small sums, and
  chats with questions, lists, JSON, remembered names and tool calls. No text was collected from anywhere.
- **Tokenizer.** Byte-level BPE with 4096 tokens. All 256 bytes are tokens, so every Unicode text
  survives the round trip.
- **Model.** Llama: hidden size 256, 6 layers, 8 query heads over 4 key and value heads of 32, feed-forward 768, tied
  embeddings, rotary base 10000, {num_parameters:,} parameters, stored in bfloat16.
- **Training.** {training}

## Held-out perplexity

Measured with the stored bfloat16 weights, arithmetic in float32, on generated documents whose checksum keeps them out
of the training text. They come from the same templates, so the numbers say how well the model learned this small
language, and nothing about English at large. Entropy is the mean over positions of the model's own uncertainty.

| domain | tokens | perplexity | entropy (nats) |
|---|---:|---:|---:|
{rows}

## What it writes

Greedy, up to 40 tokens:

{samples}

## Chat format

```
<|bos|><|im_start|>user
What is the capital of Italy?<|im_end|>
<|im_start|>assistant
```

A turn ends with `<|im_end|>`. A system message comes first; tools are listed in it, one JSON schema per line, and a
call is written as `<tool_call>` around `{{"name": ..., "arguments": ...}}`. `add_special_tokens` puts `<|bos|>` in
front of plain text; the chat template writes it by itself, so encode its output without special tokens.

## Limits

It knows only what its templates say: about ninety countries, twenty animals, sums of one digit (six in seven right,
one in ten beyond), some everyday topics. Off that path it writes grammatical nonsense with confidence. It follows no
instruction it was not trained on. It barely copies from its context: asked for JSON about Tom it writes of someone
else, its lists repeat themselves, and a boy in a story may be called Fiona and become a she. It was trained on
positions beyond 512 only briefly. Use it to test software, and for nothing else.
"""


def write_card(
    folder: Path,
    scores: Mapping[str, tuple[int, float, float]],
    outputs: Sequence[tuple[str, str]],
    num_parameters: int,
    training: str,
) -> None:
    """Write `README.md` into `folder`.

    Args:
        folder: The checkpoint folder.
        scores: Per domain: held-out tokens, perplexity, mean entropy in nats.
        outputs: Pairs of prompt and answer.
        num_parameters: Size of the model.
        training: A sentence on steps, tokens and optimizer.
    """
    rows = "\n".join(
        f"| {domain} | {num_tokens} | {perplexity:.2f} | {entropy:.2f} |"
        for domain, (num_tokens, perplexity, entropy) in scores.items()
    )
    samples = "\n\n".join(f"```\n> {prompt}\n{answer}\n```" for prompt, answer in outputs)
    card = _CARD.format(rows=rows, samples=samples, num_parameters=num_parameters, training=training)
    (folder / "README.md").write_text(card, encoding="utf-8")
