"""sampling: logits of a batch become token ids, one row independent of all others, bit for bit.

Decides: which token each row takes. Speaks: logits, token ids, `SamplingParams`, `TokenLogprobs`.
Owns: what a running sample has said so far, as far as penalties and bad words need it (`SamplingRow`).
Never: Request, text (a grammar's is `grammar/`'s), the batch's order, a random generator with state.
Door: `quire.sampling.sampler.sample` and `prompt_logprobs` in `quire.sampling.logprobs`; on a GPU `SamplingState` in
`quire.sampling.device`.
"""
