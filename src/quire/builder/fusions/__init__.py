"""Fusions: passes that put one op, or one larger product, in the place of several. Module-shaped, few, each drawn."""
