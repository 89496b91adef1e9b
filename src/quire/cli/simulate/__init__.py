"""`quire simulate`: what a load would do on devices that need not be there.

Decides: what is printed. Owns: nothing. Never: schedules, or knows what a step takes. Door: `configure`.
"""

from quire.cli.simulate.command import configure

__all__ = ["configure"]
