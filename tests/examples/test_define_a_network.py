"""The example and the page about defining a network run as they stand."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "define-a-network.md"


def test_the_example_serves_what_it_defines():
    done = subprocess.run(
        [sys.executable, "examples/define_a_network.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "network my decoder" and "  output logits = %embed" in lines
    op_by_op, served = (line.partition(": ")[2].strip() for line in lines[-3:-1])
    assert op_by_op == served and len(served.split(",")) == 20
    assert lines[-1] == "the same"


def test_the_page_runs_from_top_to_bottom(tmp_path, capsys):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    found = runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert "linear: Invalid shape of weight" in printed and "max_position_embeddings=100" in printed
    assert found["result"]["y"].shape == (4, 3) and "size   num_tokens: 1..2048" in printed
    quoted = re.search(r"```\n(  %q_proj.*)\n```", text)
    assert quoted and quoted[1] in str(found["network"])


def test_the_page_names_functions_and_layers_that_exist():
    from quire import functional, layers

    text = PAGE.read_text(encoding="utf-8").partition("## What there is")[2].partition("## What can be served")[0]
    functions, _, rest = text.partition("**Operators**")
    names = re.search(r"`(linear embedding[^`]*)`", functions)
    of_layers = re.search(r"`(Linear ColumnLinear[^`]*)`", rest)
    assert names and of_layers
    for name in names[1].split():
        assert callable(getattr(functional, name)) and getattr(functional, name).__doc__
    for name in of_layers[1].split():
        assert getattr(layers, name).__doc__
