"""`quire bench serve`: an open-loop load on any OpenAI-compatible server.

Decides: when each request is due, how long it is, what counts as good. Owns: its connections. Never: imports a model,
waits for an answer before it sends the next request. Door: `quire.cli.load.command`.
"""
