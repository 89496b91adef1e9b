"""A plan on one rank and on many, in threads of one process: the same steps, the logits of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire.core.mapping import Mapping
from quire.distributed.tensors.threads import run_threads, thread_communicators
from quire.plan.plan import Plan
from quire.runner.execution.executor import Executor
from quire.sharding.shard import shard

BLOCK_SIZE = 4
Step = dict[str, torch.Tensor]


def steps_of(new_ids: Sequence[Sequence[Sequence[int]]], max_len: int = 32) -> list[Step]:
    """Return the inputs of steps in each of which every sequence gets new tokens; logits of all of them are wanted."""
    num_seqs, max_blocks = len(new_ids[0]), -(-max_len // BLOCK_SIZE)
    order = torch.randperm(num_seqs * max_blocks, generator=torch.Generator().manual_seed(7)) + 1
    table, lens, steps = order.reshape(num_seqs, max_blocks).int(), [0] * num_seqs, []
    for rows in new_ids:
        counts = [len(row) for row in rows]
        positions = [torch.arange(have, have + n) for have, n in zip(lens, counts, strict=True)]
        lens = [have + n for have, n in zip(lens, counts, strict=True)]
        slots = [table[i][at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for i, at in enumerate(positions)]
        steps.append(
            {
                "input_ids": torch.tensor([token for row in rows for token in row], dtype=torch.int32),
                "positions": torch.cat(positions).int(),
                "slot_mapping": torch.cat(slots).int(),
                "block_table": table,
                "seq_lens": torch.tensor(lens, dtype=torch.int32),
                "query_start_loc": torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int(),
                "logits_indices": torch.arange(sum(counts), dtype=torch.int32),
            }
        )
    return steps


def run(plan: Plan, steps: Sequence[Step], *, by_reference: bool = False) -> list[torch.Tensor]:
    """Return the logits of each step, by the tactics of the CPU or by the references; none of a stage without them."""
    num_blocks = int(steps[0]["block_table"].max()) + 1
    caches = {}
    for name, spec in plan.kv_caches.items():
        shape = [{"num_blocks": num_blocks, "block_size": BLOCK_SIZE}.get(size, size) for size in spec.shape]
        caches[name] = torch.zeros(shape, dtype=spec.dtype)
    weights = {name: plan.weights.read(name) for name in plan.network.weights} if by_reference else {}
    executor = None if by_reference else Executor(plan.network, plan.weights)
    found = []
    for step in steps:
        inputs = {**{name: step[name] for name in plan.network.inputs if name in step}, **caches}
        with torch.inference_mode():
            outputs = plan.network.run(inputs, weights) if executor is None else executor.run(inputs)
        found += [outputs["logits"].clone()] if "logits" in outputs else []
    return found


def run_sharded(
    plan: Plan, tp_size: int, pp_size: int, steps: Sequence[Step], *, by_reference: bool = False, **options: bool
) -> list[torch.Tensor]:
    """Return the logits of each step; all ranks of the last stage must have the same bits.

    Args:
        plan: Of the whole model.
        tp_size: Ranks of a stage.
        pp_size: Stages.
        steps: What to compute.
        by_reference: As of `run`.
        options: Of `shard`.
    """
    parts = [shard(plan, c.mapping, **options) for c in thread_communicators(tp_size, pp_size)]
    outputs = run_threads(
        thread_communicators(tp_size, pp_size),
        lambda communicator: run(parts[communicator.mapping.rank], steps, by_reference=by_reference),
    )
    *others, last = (outputs[i * tp_size : (i + 1) * tp_size] for i in range(pp_size))
    assert all(logits == [] for stage in others for logits in stage)
    for logits in last[1:]:
        assert all(torch.equal(a, b) for a, b in zip(logits, last[0], strict=True)), "ranks have other bits"
    return last[0]


def mappings(tp_size: int, pp_size: int) -> list[Mapping]:
    """Return the mappings of all ranks."""
    return [communicator.mapping for communicator in thread_communicators(tp_size, pp_size)]
