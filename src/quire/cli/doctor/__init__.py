"""`quire doctor`: prints what `quire.distributed.doctor` finds out. Door: `configure`."""

from quire.cli.doctor.command import configure

__all__ = ["configure"]
