"""Files of a Plan: tensors with offsets and hashes, JSON with its hash, and reading ahead of who packs."""
