"""What keeps the ranks of a cluster from working together, found before a model is loaded, with who is to blame.

Decides: which host or rank differs from the others, cannot be reached, or is slow. Speaks: facts of each rank, what it
reached, all-reduces of each pair. Never: changes anything. Door: `examine`, called by all ranks at the same time.
"""
