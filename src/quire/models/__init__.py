"""models: from a model's config to its network. One family, one file.

Decides: which configs are understood, and what they compute. Speaks: `config.json` as a mapping in, `ModelSpec` and
`Network` out, names of checkpoint tensors. Owns: nothing. Never: weight values, files, environment, devices.
Door: `quire.models.registry`.
"""
