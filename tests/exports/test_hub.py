"""Uploads, to a stand-in for the hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from thought_saes.common.errors import InputError
from thought_saes.exports.hub import push


class StandIn:
    """Keeps what it is sent, or raises."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem
        self.repositories: list[str] = []
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, *, repo_type: str, exist_ok: bool) -> str:
        if self.problem:
            raise self.problem
        assert (repo_type, exist_ok) == ("model", True)
        self.repositories.append(repo_id)
        return f"https://hub/{repo_id}"

    def upload_folder(self, **given: Any) -> None:
        self.uploads.append(given)


def test_only_what_was_written_is_uploaded(tmp_path: Path) -> None:
    hub = StandIn()
    assert push(tmp_path, ["a/cfg.json", "README.md"], "org/saes", hub) == "https://hub/org/saes"
    assert hub.repositories == ["org/saes"]
    [upload] = hub.uploads
    assert (upload["repo_id"], upload["folder_path"]) == ("org/saes", tmp_path)
    assert upload["allow_patterns"] == ["a/cfg.json", "README.md"]


def refusal(status: int) -> HfHubHTTPError:
    problem = HfHubHTTPError.__new__(HfHubHTTPError)
    problem.args = ("refused",)
    problem.response = SimpleNamespace(status_code=status)
    return problem


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (LocalTokenNotFoundError("no token"), "the hub refuses to write org/saes: log in with 'hf auth login'"),
        (refusal(403), "the hub refuses to write org/saes: log in with 'hf auth login'"),
        (refusal(500), "the hub did not take org/saes"),
        (OfflineModeIsEnabled("offline"), "the hub cannot be reached"),
        (ConnectionError("no route"), "the hub cannot be reached"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_line(problem: Exception, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        push(tmp_path, ["README.md"], "org/saes", StandIn(problem))
