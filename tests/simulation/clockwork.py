"""Steps that take what a test says, so that times can be computed by hand."""

from quire.core.config import SchedulerConfig
from quire.simulation.cluster import Cluster
from quire.simulation.timing.costs import StepShape
from quire.simulation.timing.times import StepSeconds


class Clockwork:
    """Step times by a formula: `step_s` a step and `token_s` a token on each stage, and `host_s` of the host.

    Attributes:
        shapes: Of all steps that were asked for.
    """

    windows = (None,)

    def __init__(self, step_s=1.0, token_s=0.0, host_s=0.0, num_stages=1, is_ahead=False):
        self.step_s, self.token_s, self.host_s = step_s, token_s, host_s
        self.num_stages, self.is_ahead = num_stages, is_ahead
        self.shapes: list[StepShape] = []

    def of(self, shape):
        self.shapes.append(shape)
        each = self.step_s + self.token_s * shape.num_tokens
        return StepSeconds(self.host_s, (each,) * self.num_stages)


def scheduler_config(**changes):
    """Return settings with room for everything unless a test takes it away."""
    settings = {"max_model_len": 64, "max_num_seqs": 8, "max_num_batched_tokens": 32, "block_size": 4,
                "num_blocks": 200}  # fmt: skip
    return SchedulerConfig(**{**settings, **changes})


def cluster(times=None, num_replicas=1, router="round_robin", **changes):
    """Return a cluster whose replicas take `times`."""
    return Cluster(scheduler_config(**changes), times or Clockwork(), num_replicas, router=router)
