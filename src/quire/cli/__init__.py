"""cli: flags to configurations to one call.

Decides: what a command prints. Speaks: `LLM`, configurations. Owns: nothing. Never: torch, logic of other rooms.
Door: the command `quire`, `quire.cli.main.main`.
"""
