"""Which graphs are legal at which stage, as data; checked between the builder's passes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from quire.core.errors import BuildError, ShapeError
from quire.graph.network import Network
from quire.graph.nodes import op_of, results, spec_argument
from quire.ops.op import Op
from quire.ops.registry import OPS


@dataclass(frozen=True, slots=True)
class Stage:
    """What a graph may contain.

    Attributes:
        name: Shown in errors.
        ops: Names of the legal ops.
        needs_outputs: Whether at least one output must be marked.
        allows_unused: Whether a call may have a result that nobody uses.
    """

    name: str
    ops: frozenset[str]
    needs_outputs: bool = True
    allows_unused: bool = True


DEFINED = Stage("defined", frozenset(OPS))
OPTIMIZED = Stage("optimized", frozenset(OPS), allows_unused=False)


def check_network(network: Network, stage: Stage) -> None:
    """Prove that a network is legal at a stage.

    Every op is known and legal there; every result is what the op infers from its arguments today; only inputs are
    mutated; outputs exist.

    Raises:
        BuildError: It is not; the message names the stage, the node, expected and got.
    """
    for node in network.graph.nodes:
        if node.op == "call_function":
            _check_call(node, stage, network)
        elif node.op not in ("placeholder", "get_attr"):
            raise _illegal(stage, node, "an input, a weight or an op call", node.op)
    if stage.needs_outputs and not network.outputs:
        raise BuildError(f"stage {stage.name}: network {network.name!r} has no output; mark one with mark_output.")


def _illegal(stage: Stage, node: fx.Node, expected: str, got: object) -> BuildError:
    return BuildError(f"stage {stage.name}, node %{node.name}: expected {expected}, got {got}.")


def _check_call(node: fx.Node, stage: Stage, network: Network) -> None:
    if not isinstance(node.target, Op) or node.target.name not in stage.ops or node.args:
        raise _illegal(stage, node, f"one of the ops {', '.join(sorted(stage.ops))} with named arguments", node.target)
    op = op_of(node)
    try:
        inferred = op.check(**{name: spec_argument(value) for name, value in node.kwargs.items()})
    except ShapeError as error:
        raise _illegal(stage, node, "arguments that fit its op", str(error)) from error
    if inferred != node.meta.get("spec"):
        raise _illegal(stage, node, f"the result {inferred}", node.meta.get("spec"))
    for name in op.mutates:
        target = node.kwargs[name]
        if not isinstance(target, fx.Node) or target.op != "placeholder":
            raise _illegal(stage, node, f"an input as {name}, which it mutates", target)
    is_unused = not node.users and node not in network.outputs.values()
    if not stage.allows_unused and is_unused and results(node) and not op.mutates:
        raise _illegal(stage, node, "a result that somebody uses", "none")
