"""grammar: which tokens a structured output allows next.

Decides: what a `StructuredOutputsParams` means as a grammar, which grammars are refused, the mask of a step. Speaks:
grammars in Lark's syntax, the bytes of tokens, masks of bits. Owns: compiled grammars, and how far each sample is in
its own. Never: torch, prompts, the text of a request.
Door: `GrammarChecker.check` when a request is admitted, `GrammarCompiler.start` when a sample starts.
"""
