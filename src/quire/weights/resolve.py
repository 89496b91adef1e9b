"""`resolve_model`: from what a person calls a model to the directory it lies in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import quire
from quire.core.errors import ConfigError, PlanError
from quire.core.log import get_logger
from quire.core.model_files import GENERATION_CONFIG, TOKENIZER_FILES

_log = get_logger(__name__)

BUILT_IN = {"quire-tiny": "quire_tiny"}
"""Names of the models inside the package, and their folders below `assets`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SMALL_FILES = ("config.json", GENERATION_CONFIG, *TOKENIZER_FILES)
_SAFETENSORS = ("*.safetensors", "model.safetensors.index.json")
_LEGACY = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
# Some repositories hold the same weights again in their authors' own layout.
_DUPLICATES = ("consolidated*", "*/*")


def resolve_model(model: str, revision: str | None = None, *, needs_weights: bool = True) -> Path:
    """Return the directory of a model; only a hub id that is no local path touches the network.

    Args:
        model: A directory, "quire-tiny", or a Hugging Face hub id such as "Qwen/Qwen3-0.6B".
        revision: Branch, tag or commit on the hub; None means its main branch.
        needs_weights: Whether weights are fetched from the hub, too.

    Raises:
        ConfigError: The name is empty or no hub id, the hub does not know it or refuses it, or a revision was given for
            a local directory.
        PlanError: A path does not exist or is no directory, or the hub cannot be reached.
    """
    if model in BUILT_IN:
        return _local(Path(quire.__file__).parent / "assets" / BUILT_IN[model], model, revision)
    path = os.path.expanduser(model)  # unlike pathlib's, it and `exists` bear any string
    if model and os.path.exists(path):
        return _local(Path(path), model, revision)
    if _looks_like_path(model):
        raise PlanError(f"{model}: expected a model directory, got no such path. Check it, or give a hub id.")
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model: expected a directory, a hub id such as 'Qwen/Qwen3-0.6B', or one of {', '.join(BUILT_IN)}, "
            f"got {model[:200]!r}."
        )
    return _download(model, revision) if needs_weights else _snapshot(model, revision, _SMALL_FILES)


def _local(path: Path, model: str, revision: str | None) -> Path:
    if revision is not None:
        raise ConfigError(f"revision: expected None for the local model {model}, got {revision!r}. Leave it out.")
    if not (path / "config.json").is_file():
        got = "a file" if path.is_file() else "no config.json in it" if path.is_dir() else "no such directory"
        raise PlanError(f"{path}: expected a model or engine directory with a config.json, got {got}.")
    return path


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.endswith("/") or "\\" in model or model.count("/") > 1


def _download(model: str, revision: str | None) -> Path:
    """Fetch a hub model into the hub's own cache, weights in the legacy format only where there are no others."""
    path = _snapshot(model, revision, (*_SMALL_FILES, *_SAFETENSORS))
    if not any(path.glob("*.safetensors")):
        _log.info("%s has no safetensors weights; fetching the legacy format", model)
        path = _snapshot(model, revision, (*_SMALL_FILES, *_LEGACY))
    return path


def _snapshot(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub as hub  # late: most runs never need it, and it takes a while to import
    from huggingface_hub import errors

    def fail(kind: type[ConfigError | PlanError], expected: str, got: str, hint: str) -> NoReturn:
        raise kind(f"hub model {model!r}: expected {expected}, got {got}. {hint}")

    try:
        return Path(
            hub.snapshot_download(
                model, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_DUPLICATES)
            )
        )
    except errors.GatedRepoError:
        fail(ConfigError, "access to it", "a gated repository", "Accept its terms on the hub and log in with a token.")
    except errors.RevisionNotFoundError:
        fail(ConfigError, f"a revision {revision!r}", "no such revision", "Check its branches, tags and commits.")
    except errors.RepositoryNotFoundError:
        hint = "Check the spelling; a private one needs a token; a local directory must exist."
        fail(ConfigError, "a repository of that name", "none that may be read", hint)
    except Exception as error:  # which classes mean "no network" depends on the client's version and HTTP library
        got = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        fail(PlanError, "to fetch it", got, "Check the network, or give a local directory.")
