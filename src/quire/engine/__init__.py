"""engine: the loop.

Decides: when a step runs, what a valid request is, what a request's output looks like. Speaks: `Request` in,
`RequestOutput` out. Owns: one scheduler, one runner, one tokenizer, and the text state of unfinished requests.
Never: torch, HTTP. Doors: `quire.engine.llm_engine.LLMEngine`, and for a process without text
`quire.engine.engine_loop.EngineLoop`.
"""
