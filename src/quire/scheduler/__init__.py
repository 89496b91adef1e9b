"""scheduler: who runs next, and what a result means for a request.

Decides: which rows a step computes and how many tokens of each, who is admitted, who is preempted, when a sample ends.
Speaks: `Request` in, `SchedulerOutput` out, `ModelOutput` in, `SampleUpdate` out. Owns: the token lists and the
status of every sample. Never: torch, text, K/V bytes, clocks. Door: `quire.scheduler.scheduler.Scheduler`.

A *row* is one sample of a request while it is unfinished; `row_id` is its key for life. It is in exactly one queue:

    add --> held --> waiting <--> running --> (ended)
             |          ^  forward: admission; back: preemption
             +----------+  sample 0 leads; the others are held until its prompt is computed, then forked from it
"""
