"""Folders of models: on this machine, or downloaded from the hub."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from thought_saes.common.errors import InputError, one_line

TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


def resolve_folder(name: str, patterns: Sequence[str]) -> Path:
    """`name` if it is a folder, else the files of the hub model `name` that match `patterns`, downloaded.

    Raises InputError if it is neither, or if the hub refuses it or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError as problem:
        raise InputError(
            f"the model '{name}' is gated: accept its licence on the hub, then log in with 'hf auth login'"
        ) from problem
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise InputError(f"'{name}' is neither a folder nor a model on the hub") from problem
    except LocalEntryNotFoundError as problem:
        raise InputError(f"'{name}' is no folder, and the hub cannot be reached (is HF_HUB_OFFLINE set?)") from problem
    except (OSError, HTTPError) as problem:
        if getattr(problem, "errno", None) is not None:  # a full disk, say
            raise
        raise InputError(f"the hub cannot give the model '{name}' ({one_line(problem)[:200]})") from problem


def quiet_libraries() -> None:
    """Keep what the libraries say to themselves off stderr: errors come as exceptions."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
