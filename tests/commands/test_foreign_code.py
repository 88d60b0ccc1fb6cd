"""Code that a model's folder brings never runs unasked, whatever stands on standard input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.codi_checkpoints import write_plain
from tests.helpers.paths import ROOT

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "foreign"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokens(PreTrainedTokenizerFast):
    pass
"""


def foreign(folder: Path, part: str) -> Path:
    """A model folder whose `part` is code of its own, which leaves a marker where it runs."""
    write_plain(folder)
    (folder / "foreign.py").write_text(CODE.format(marker=str(folder / "ran")))
    name = "config.json" if part == "model" else "tokenizer_config.json"
    content = json.loads((folder / name).read_text())
    if part == "model":
        content |= {
            "model_type": "foreign",
            "auto_map": {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"},
        }
    else:
        content |= {"tokenizer_class": "Tokens", "auto_map": {"AutoTokenizer": [None, "foreign.Tokens"]}}
    (folder / name).write_text(json.dumps(content))
    return folder


def extract(folder: Path, questions: Path, stdin: int, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--model", str(folder), "--dataset", str(questions), "--activations", str(folder / "out"), *more]
    return subprocess.run(
        [sys.executable, "extract_activations.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        stdin=stdin,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("part", "opened"), [("model", True), ("model", False), ("tokenizer", True)])
def test_code_of_a_models_folder_is_refused_in_one_line(tmp_path: Path, part: str, opened: bool) -> None:
    folder, questions = foreign(tmp_path / "model", part), tmp_path / "a.jsonl"
    questions.write_text('{"question": "how many ?", "answer": "1"}\n' * 2)
    if opened:
        reading, writing = os.pipe()
        os.write(writing, b"y\ny\ny\n")
        os.close(writing)
    result = extract(folder, questions, reading if opened else subprocess.DEVNULL)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert (
        "brings code that would run here (foreign.py), which is refused; --trust-remote-code runs it" in result.stderr
    )
    assert not (folder / "ran").exists()
    assert not (folder / "out").exists()


def test_code_that_is_trusted_runs(tmp_path: Path) -> None:
    folder, questions = foreign(tmp_path / "model", "model"), tmp_path / "a.jsonl"
    questions.write_text('{"question": "how many ?", "answer": "1"}\n' * 2)
    result = extract(folder, questions, subprocess.DEVNULL, "--trust-remote-code")
    assert result.returncode == 0, result.stderr
    assert (folder / "ran").exists()
