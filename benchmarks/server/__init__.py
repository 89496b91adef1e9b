"""The server without a model: what its own process can do, and what the load generator can."""
