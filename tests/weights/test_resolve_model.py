"""From a model's name to its directory: local first, the hub last, and every refusal with a next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

import quire
from quire.core.errors import ConfigError, PlanError
from quire.weights.resolve import resolve_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Replace the hub by a folder; returns the record of what was asked of it."""
    made: list[dict[str, Any]] = []

    def snapshot(model: str, **options: Any) -> str:
        made.append({"model": model, **options})
        return str(tmp_path / "snapshot")

    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return made


def test_local_directory_never_asks_the_hub(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "org" / "name"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(model)) == model
    assert resolve_model("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org/name") == model
    with pytest.raises(ConfigError, match="revision"):
        resolve_model(str(model), "main")
    assert calls == []


def test_built_in_model_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets" / "quire_tiny").mkdir(parents=True)
    (tmp_path / "assets" / "quire_tiny" / "config.json").write_text("{}")
    monkeypatch.setattr(quire, "__file__", str(tmp_path / "__init__.py"))
    assert resolve_model("quire-tiny") == tmp_path / "assets" / "quire_tiny"


@pytest.mark.parametrize(
    "path",
    ["/no/such", "./no", "../no", "~/no-such-model", "no/such/path", "no\\such", "no/", "~nobody-of-this-name/x"],
)
def test_what_looks_like_a_path_must_exist(path: str, calls: list[dict[str, Any]]) -> None:
    with pytest.raises(PlanError, match="no such path"):
        resolve_model(path)
    assert calls == []


@pytest.mark.parametrize("name", ["", "a b", "org/na me", "x" * 300, "org:name", "é", "-x", "a\0b"])
def test_what_is_no_hub_id_is_refused(name: str, calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="hub id"):
        resolve_model(name)
    assert calls == []


def test_directory_without_config_and_plain_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(PlanError, match="a file"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_hub_gives_safetensors_and_the_legacy_format_only_without_them(
    tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    (tmp_path / "snapshot" / "model.safetensors").touch()
    assert resolve_model("org/name", "v1") == tmp_path / "snapshot"
    assert [(call["model"], call["revision"]) for call in calls] == [("org/name", "v1")]
    wanted = calls[0]["allow_patterns"]
    assert {"config.json", "generation_config.json", "tokenizer.json", "*.safetensors"} <= set(wanted)
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in wanted)
    (tmp_path / "snapshot" / "model.safetensors").unlink()
    resolve_model("gpt2")
    assert "pytorch_model*.bin" in calls[2]["allow_patterns"] and "pytorch_model*.bin" not in calls[1]["allow_patterns"]


class _Unreachable(Exception):
    """What an HTTP library may raise."""


def _http(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    error = kind.__new__(kind)  # its constructor wants a response of the HTTP library of that version
    error.args = ("refused",)
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "named"),
    [
        (_http(errors.GatedRepoError), ConfigError, "token"),
        (_http(errors.RepositoryNotFoundError), ConfigError, "spelling"),
        (_http(errors.RevisionNotFoundError), ConfigError, "branches"),
        (_http(errors.HfHubHTTPError), PlanError, "network"),
        (errors.LocalEntryNotFoundError("no connection\nand more"), PlanError, "no connection. Check the network"),
        (OSError(28, "No space left on device"), PlanError, "No space left"),
        (_Unreachable("no route"), PlanError, "no route"),
    ],
)
def test_hub_failures_say_what_to_do(
    raised: Exception, kind: type[Exception], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(model: str, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(kind, match=named) as failed:
        resolve_model("org/name", "v1")
    assert "org/name" in str(failed.value) and "\n" not in str(failed.value)
