"""Both ways to sample on a CPU."""

from collections.abc import Iterator

import pytest

from quire.ops.native.library import kernel_names
from quire.sampling import compiled

WAYS = ["torch", *(["compiled"] if "choose_tokens" in kernel_names() else [])]


@pytest.fixture(params=WAYS, scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Sample by torch alone, and by compiled kernels if there are some."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(compiled, "is_compiled", lambda device: False)
        yield request.param
