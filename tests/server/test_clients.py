"""Clients that others wrote, unmodified and each in an environment of its own, against the server as users run it.

`CLIENT_ENVIRONMENTS` names a folder with what is installed of `node/` (npm install openai), `litellm/` and `lmeval/`
(virtual environments: pip install litellm, pip install "lm-eval[api]" transformers). What is not there is skipped.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CLIENTS = Path(__file__).parent / "clients"
TOKENIZER = Path(__file__).parents[2] / "src/quire/assets/quire_tiny"
MODEL = "quire-tiny"


def environment(name: str, needed: str) -> Path:
    """The folder of an environment."""
    folder = Path(os.environ.get("CLIENT_ENVIRONMENTS", "/nowhere")) / name
    if not (folder / needed).exists():
        pytest.skip(f"{folder / needed} is not there; CLIENT_ENVIRONMENTS names where clients are installed")
    return folder


def run(command: list, cwd: Path, **variables: str) -> str:
    """Run a client; returns what it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_npm_client(server):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    folder = environment("node", "node_modules/openai")
    script = folder / "conversation.mjs"  # where it finds the client
    shutil.copy(CLIENTS / "conversation.mjs", script)
    said = run([node, script, f"{server.url}/v1", MODEL], folder)
    assert said.count("ok ") == (CLIENTS / "conversation.mjs").read_text().count("\n  async ")
    server.until_idle()


def test_litellm(server, tmp_path):
    python = environment("litellm", "bin/python") / "bin/python"
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    said = run([python, CLIENTS / "litellm_suite.py", f"{server.url}/v1", MODEL], tmp_path, **local)
    assert said.count("ok ") == 5


@pytest.fixture
def tasks(tmp_path):
    """The folder of tasks; the path of their data is filled in."""
    for task in (CLIENTS / "lm_eval_tasks").glob("*.yaml"):
        text = task.read_text().replace("DATA", str(CLIENTS / "lm_eval_tasks/continuations.jsonl"))
        (tmp_path / task.name).write_text(text)
    return tmp_path


def evaluate(tasks, task: str, model: str, arguments: str, *more: str) -> dict:
    """Run lm-eval without a network; returns the task's figures."""
    program = environment("lmeval", "bin/lm_eval") / "bin/lm_eval"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "hf"), "OPENAI_API_KEY": "any"}
    command = [program, "--model", model, "--model_args", arguments, "--tasks", task, "--include_path", tasks]
    run([*command, "--output_path", tasks / "out", "--log_samples", *more], tasks, **offline)
    (results,) = (tasks / "out").rglob("results_*.json")
    return json.loads(results.read_text())["results"][task]


@pytest.mark.parametrize("tokenizer", ("remote", "huggingface"))
def test_lm_eval_loglikelihood(server, tasks, tokenizer):
    arguments = f"model={MODEL},base_url={server.url}/v1/completions,num_concurrent=4,max_retries=1"
    arguments += f",tokenizer_backend={tokenizer}"
    if tokenizer == "huggingface":
        arguments += f",tokenizer={TOKENIZER}"
    found = evaluate(tasks, "continuations", "local-completions", arguments)
    assert found["acc,none"] == 1.0, "words are likelier than letters at random"


def test_lm_eval_generates(server, tasks):
    arguments = f"model={MODEL},base_url={server.url}/v1/chat/completions,num_concurrent=2,max_retries=1"
    assert "exact_match,none" in evaluate(tasks, "story", "local-chat-completions", arguments, "--apply_chat_template")
