"""Programs are imported without collecting garbage, and end with what their `main` returns."""

import gc
import subprocess

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
