"""HTTP itself: connections and limits, keys, bodies, one request's way through, shutting down. Nothing of a model."""
