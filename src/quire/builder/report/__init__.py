"""report: what a build did and cost, for readers.

Decides: which facts are told, and how they look. Speaks: `Plan` in, plain values and one HTML page out. Owns: nothing.
Never: changes a plan, loads anything from elsewhere. Door: `summary.summarize`, `page.render_html`.
"""
