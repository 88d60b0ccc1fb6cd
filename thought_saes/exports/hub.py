"""Upload exported SAEs to the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from thought_saes.common.errors import InputError, one_line


def push(folder: Path, names: Sequence[str], repository: str, api: Any = None) -> str:
    """Upload the files `names` of `folder` to the model repository ORG/REPO, made if it is not there; return its URL.

    `api` stands in for huggingface_hub.HfApi. Raises InputError if the hub refuses or cannot be reached.
    """
    api = api or HfApi()
    try:
        url = api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            allow_patterns=list(names),
            commit_message="Sparse autoencoders on continuous thoughts",
        )
    except HFValidationError as problem:
        raise InputError(f"--push {repository} is no name of a repository: write ORG/REPO") from problem
    except (LocalTokenNotFoundError, HfHubHTTPError) as problem:
        status = getattr(getattr(problem, "response", None), "status_code", None)
        if isinstance(problem, LocalTokenNotFoundError) or status in (401, 403):
            raise InputError(f"the hub refuses to write {repository}: log in with 'hf auth login'") from problem
        raise InputError(f"the hub did not take {repository} ({one_line(problem)[:200]})") from problem
    except (OfflineModeIsEnabled, HTTPError, OSError) as problem:
        raise InputError(f"the hub cannot be reached ({one_line(problem)[:200]}); {folder} is written") from problem
    return str(url)
