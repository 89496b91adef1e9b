"""Every misuse is an error of the line that made it, with a message that says what to do, and leaves nothing behind."""

import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quire import Network, Tensor, functional, layers, net_guard
from quire.core.errors import BuildError, ShapeError
from quire.graph.network import current_network

F = functional


def lines():
    """A network under definition, with things to misuse."""
    network, other = Network("mine"), Network("theirs")
    with net_guard(other):
        foreign = Tensor("x", "float32", ("num_tokens", 8))
    with net_guard(network):
        x = Tensor("x", "float32", ("num_tokens", 8))
        ids = Tensor("ids", "int32", ("num_tokens",))
        w = network.add_weight("w", "float32", (3, 8))
        F.silu(x).mark_output("y")
    return SimpleNamespace(network=network, x=x, ids=ids, w=w, foreign=foreign)


def truth(n):
    return 1 if n.x > 0 else 2


def unpack(n):
    first, second = F.silu(n.x)
    return first, second


MISUSES = {
    "foreign tensor": (
        lambda n: F.add(n.x, n.foreign),
        BuildError,
        "add: expected a tensor of network 'mine', got x: ",
    ),
    "foreign operator": (lambda n: n.foreign * 2, BuildError, "mul: expected a tensor of network 'mine'"),
    "foreign in a list": (lambda n: F.concat([n.x, n.foreign], 1), BuildError, "concat: expected a tensor of network"),
    "foreign output": (lambda n: n.network.mark_output(n.foreign, "z"), BuildError, "got x: .* of another network"),
    "a tensor with values": (
        lambda n: n.x + torch.ones(8),
        BuildError,
        "add: expected a symbolic tensor, got one with "
        r"values \(Tensor\); declare it with network.add_weight",
    ),
    "an array": (
        lambda n: n.x + np.ones(8),
        ShapeError,
        "add: Invalid y: expected a tensor or a finite number, got nda",
    ),
    "an array before": (lambda n: np.ones(8) * n.x, ShapeError, "mul: Invalid y: expected a tensor or a finite number"),
    "shapes": (
        lambda n: F.linear(n.x, F.permute(n.w, (1, 0))),
        ShapeError,
        r"linear: Invalid shape of weight: expected "
        r"\[out_features=8, in_features=8\], got \[8, 3\]",
    ),
    "broadcast": (lambda n: n.x + n.w, ShapeError, "add: Invalid shape of y: expected it to broadcast"),
    "dtypes": (lambda n: n.x.cast("bfloat16") + n.x, ShapeError, "add: Invalid dtypes: expected one dtype for all"),
    "layer": (
        lambda n: layers.Linear("p", 7, 3, "float32", bias=True)(n.x),
        ShapeError,
        "linear: Invalid shape of weig",
    ),
    "layer of a number": (
        lambda n: layers.Linear("p", 8, 3, "float32")(1.0),
        ShapeError,
        "linear: Invalid x: expected a tensor, got float 1.0",
    ),
    "number for a tensor": (
        lambda n: F.rms_norm(n.x, 1e-5, 1e-5),
        ShapeError,
        "rms_norm: Invalid weight: expected a ten",
    ),
    "tensor for a number": (
        lambda n: F.softmax(n.x, n.x),
        ShapeError,
        "softmax: Invalid dim: expected an integer, got T",
    ),
    "none for a tensor": (lambda n: F.silu(None), ShapeError, "silu: Invalid x: expected a tensor, got NoneType"),
    "text for a number": (
        lambda n: n.x * "2",
        ShapeError,
        "mul: Invalid y: expected a tensor or a finite number, got str",
    ),
    "infinity": (lambda n: F.where(n.x > 0, n.x, float("-inf")), ShapeError, "where: Invalid y: .* got float -inf"),
    "missing argument": (
        lambda n: F.linear(n.x),
        ShapeError,
        "linear: missing a required argument: 'weight'; expected",
    ),
    "unknown argument": (lambda n: F.silu(n.x, up=1), ShapeError, "silu: got an unexpected keyword argument 'up'"),
    "symbolic view": (
        lambda n: n.x.view("num_tokens", 8),
        ShapeError,
        "view: Invalid shape: expected a list of integers",
    ),
    "float ids": (
        lambda n: F.embedding(n.x, n.w),
        ShapeError,
        "embedding: Invalid dtype of ids: expected int32 or int64",
    ),
    "float for integers": (lambda n: n.ids * 0.5, ShapeError, "mul: .* expected integers beside int32, got a float"),
    "odd swiglu": (
        lambda n: F.swiglu(F.slice(n.x, 1, 0, 7)),
        ShapeError,
        "swiglu: Invalid shape of x: expected an even",
    ),
    "swiglu of a number": (lambda n: F.swiglu(2), ShapeError, "swiglu: Invalid x: expected a symbolic tensor, got int"),
    "swiglu of integers": (lambda n: F.swiglu(n.w.cast("int32")), ShapeError, "silu: Invalid dtype of x"),
    "condition": (truth, BuildError, "neither true nor false .* choose between tensors with functional.where"),
    "and": (lambda n: n.x and n.x, BuildError, "neither true nor false"),
    "membership": (lambda n: n.x in [n.w], ShapeError, "eq: Invalid shape of y: expected it to broadcast"),
    "unpacking": (unpack, BuildError, "cannot be iterated over; cut it with functional.split"),
    "loop": (lambda n: list(n.x), BuildError, "cannot be iterated over"),
    "input twice": (lambda n: Tensor("x", "float32", (1,)), BuildError, "input 'x' of mine is declared twice"),
    "output twice": (lambda n: n.x.mark_output("y"), BuildError, "output 'y' of mine is marked twice"),
    "unnamed output": (lambda n: n.x.mark_output(""), BuildError, "expected a symbolic tensor and a name"),
    "output of values": (
        lambda n: n.network.mark_output(torch.ones(1), "z"),
        BuildError,
        "expected a symbolic tensor and",
    ),
    "unnamed weight": (
        lambda n: n.network.add_weight("", "float32", (1,)),
        BuildError,
        r"weight '' of float32\(1,\) has "
        "no name",
    ),
    "unnamed layer": (
        lambda n: layers.Linear("", 8, 3, "float32")(n.x),
        BuildError,
        r"weight '\.weight' .* has no name",
    ),
    "weight twice": (
        lambda n: n.network.add_weight("w", "float32", (3, 9)),
        BuildError,
        r"weight 'w': expected float32\[3,"
        r" 8\] as declared first, got float32\[3, 9\]",
    ),
    "shards twice": (
        lambda n: n.network.add_weight("w", "float32", (3, 8), 1),
        BuildError,
        "expected shard_dim None as de",
    ),
    "symbolic weight": (
        lambda n: n.network.add_weight("v", "float32", ("n",)),
        ShapeError,
        "weight 'v': expected sizes of at least 0, got 'n'",
    ),
    "negative size": (
        lambda n: Tensor("z", "float32", (-1, 8)),
        ShapeError,
        "input 'z': expected sizes of at least 0, or a"
        " name such as 'num_tokens' for one known only at run time, got -1",
    ),
    "float size": (lambda n: Tensor("z", "float32", (8.0,)), ShapeError, "input 'z': expected sizes of at least 0"),
    "no name of a size": (
        lambda n: Tensor("z", "float32", ("num tokens",)),
        ShapeError,
        "expected sizes .* 'num tokens'",
    ),
    "text as shape": (
        lambda n: Tensor("z", "float32", "num_tokens"),
        ShapeError,
        "input 'z': expected a tuple of sizes",
    ),
    "number as shape": (lambda n: Tensor("z", "float32", 8), ShapeError, "input 'z': expected a tuple of sizes, got 8"),
    "unknown dtype": (
        lambda n: Tensor("z", "float23", (8,)),
        ShapeError,
        "Invalid dtype: expected one of float32, .*flo",
    ),
    "torch dtype": (
        lambda n: Tensor("z", torch.float32, (8,)),
        ShapeError,
        "expected the name of a dtype, such as 'floa",
    ),
    "range of nothing": (
        lambda n: Tensor("z", "float32", ("n",), {"m": (1, 2)}),
        ShapeError,
        "ranges of its symbolic siz",
    ),
    "range turned over": (
        lambda n: Tensor("z", "float32", ("n",), {"n": (2, 1)}),
        ShapeError,
        "least and most of n, such",
    ),
    "range of one": (lambda n: Tensor("z", "float32", ("n",), {"n": 8}), ShapeError, r"such as \(1, 2048\), got 8"),
    "too many experts": (
        lambda n: layers.MOE("m", 8, 4, 2, 3, "float32")(n.x),
        ShapeError,
        r"m: expected top_k in \[1, ",
    ),
    "unnamed network": (lambda n: Network(""), BuildError, "network: expected a name, got ''"),
    "guard of nothing": (
        lambda n: net_guard(None).__enter__(),
        BuildError,
        "net_guard: expected a Network, got NoneType",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_an_error_of_its_line(name):
    statement, kind, message = MISUSES[name]
    n = lines()
    before, weights = str(n.network), n.network.weights
    with net_guard(n.network):
        with pytest.raises(kind, match=message) as caught:
            statement(n)
        assert current_network() is n.network
    own = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__) if frame.f_code.co_filename == __file__]
    assert own[-1].f_code is statement.__code__, "the last of our own lines is the one that is wrong"
    assert n.network.weights == weights and n.network.outputs.keys() == {"y"}
    if name not in ("dtypes", "condition", "unpacking", "shapes", "odd swiglu", "swiglu of integers", "infinity"):
        assert str(n.network) == before, "those above have a legal part before the wrong one"


@pytest.mark.parametrize(
    "statement",
    [
        lambda n: F.silu(n.x),
        lambda n: n.x + 1,
        lambda n: 1 - n.x,
        lambda n: n.x < 2,
        lambda n: n.x == 2,
        lambda n: n.x.view(-1),
        lambda n: F.swiglu(n.x),
        lambda n: layers.RmsNorm("norm", 8, 1e-5, "float32")(n.x),
        lambda n: layers.DecoderInputs.declare(1, 1, 8, "float32"),
        lambda n: Tensor("z", "float32", (1,)),
    ],
)
def test_outside_a_guard_nothing_is_recorded(statement):
    n = lines()
    before = str(n.network)
    with pytest.raises(BuildError, match="no current network: expected code inside `with net_guard"):
        statement(n)
    assert str(n.network) == before


def test_a_guard_that_raises_leaves_nothing_behind():
    n = lines()
    before, inputs, weights = str(n.network), n.network.inputs, n.network.weights
    with pytest.raises(ZeroDivisionError), net_guard(n.network):
        z = Tensor("z", "float32", ("rows", 8), dim_range={"rows": (1, 4)})
        layers.Linear("p", 8, 3, "float32", bias=True)(z * 2).mark_output("z")
        n.x.mark_output("x")
        raise ZeroDivisionError
    assert (str(n.network), n.network.inputs, n.network.weights) == (before, inputs, weights)
    assert n.network.outputs.keys() == {"y"} and not n.network.ranges
    with net_guard(n.network):  # so that it can be tried again
        z = Tensor("z", "float32", ("rows", 8))
        layers.Linear("p", 8, 3, "float32", bias=True)(z).mark_output("z")
    result = n.network.run(
        {"x": torch.ones(2, 8), "ids": torch.ones(2, dtype=torch.int32), "z": torch.ones(5, 8)},
        {"w": torch.zeros(3, 8), "p.weight": torch.ones(3, 8), "p.bias": torch.ones(3)},
    )
    assert torch.equal(result["z"], torch.full((5, 3), 9.0))


def test_an_inner_guard_that_raises_keeps_the_outer_one():
    n = lines()
    with net_guard(n.network):
        kept = F.relu(n.x)
        with pytest.raises(KeyboardInterrupt), net_guard(n.network):
            F.relu(kept)
            raise KeyboardInterrupt
        assert current_network() is n.network
        kept.mark_output("kept")
    assert [node.name for node in n.network.calls()] == ["silu", "relu"]


def test_marking_one_tensor_twice():
    n = lines()
    with net_guard(n.network):
        y = F.relu(n.x)
        y.mark_output("first")
        with pytest.raises(BuildError, match=r"output 'second' of mine: relu: float32.* is marked as 'first' already"):
            y.mark_output("second")


def test_a_tensor_is_itself_in_sets_and_dictionaries():
    n = lines()
    with net_guard(n.network):
        assert len({n.x, n.w, n.x}) == 2 and {n.x: 1}[n.x] == 1 and n.x in [n.x]
        assert (n.x == n.x).dtype == (n.x != 0).dtype == torch.bool
