"""builder: from a model to a Plan.

Decides: which passes run in which order. Speaks: `BuildConfig` in, `Plan` out. Owns: nothing once the Plan exists.
Never: requests, batches, device memory. Door: `quire.builder.open.open_plan` for a model by name,
`quire.builder.builder.Builder` for a network that a person defined.
"""
