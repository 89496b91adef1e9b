"""core: the words that all rooms share.

Decides: configurations, request types, the tree of errors. Speaks: plain Python values.
Owns: nothing at run time. Never: torch, files, network, or any I/O but environment and log.
Door: import the module you need, for example `quire.core.errors`.
"""
