"""Tests, in the shape of `src/quire/`."""
