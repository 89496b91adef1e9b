"""Programs are imported without collecting garbage, and end with what their `main` returns."""

import gc
import subprocess
import sys

from quire import import_quickly
from quire.distributed.program import command


def test_a_program_gets_its_arguments_and_gives_its_exit_code(tmp_path):
    (tmp_path / "answer.py").write_text(
        "import gc, sys\nwas_enabled = gc.isenabled()\n"
        "def main(*words):\n    print(words, was_enabled, gc.isenabled(), gc.get_freeze_count() > 0)\n"
        "    sys.stdout.flush()\n    return 3\n"
    )
    done = subprocess.run(
        command("answer", 7, "x"), env={"PYTHONPATH": f"src:{tmp_path}"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "('7', 'x') False True True\n", "")


def test_collecting_goes_on_as_it_was():
    for wanted in (False, True):
        (gc.enable if wanted else gc.disable)()
        import_quickly("json")
        assert gc.isenabled() is wanted


def test_what_torch_brings_is_never_looked_at_again(tmp_path):
    """Nor is what a program has beside it, and it ends without a word."""
    (tmp_path / "use.py").write_text(
        "import gc, sys, quire\n"
        "assert gc.get_freeze_count() == 0 and 'torch' not in sys.modules\n"
        "quire.LLM\n"
        "once = gc.get_freeze_count()\n"
        "mine = [[] for _ in range(1000)]\n"
        "quire.functional\n"
        "assert gc.get_freeze_count() <= once > 100_000 and gc.isenabled()\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "use.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
