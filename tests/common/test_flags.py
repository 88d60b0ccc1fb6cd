"""Flags come from the configs, and errors end in one line."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyze_all_layers import AnalysisConfig
from extract_activations import ExtractConfig
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError
from thought_saes.common.flags import Selection, build_parser, parse_config
from thought_saes.common.text import compact
from train_all_layers_positions import GridConfig
from train_grid import CellConfig
from visualize_all_layers import FigureConfig

CONFIGS = [ExtractConfig, CellConfig, GridConfig, AnalysisConfig, FigureConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_is_a_flag_with_a_help_text_of_its_own(config_class: type) -> None:
    flags = {action.dest: action for action in build_parser(config_class, "")._actions if action.dest != "help"}
    assert flags.keys() == {field.name for field in dataclasses.fields(config_class)}
    texts = [action.help for action in flags.values()]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    build_parser(config_class, "").format_help()


@pytest.mark.parametrize("config_class", CONFIGS)
def test_configs_cannot_be_changed(config_class: type) -> None:
    assert config_class.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_flags_are_read_with_dashes_and_with_underscores() -> None:
    for words in (["--latent-dim", "16", "32"], ["--latent_dim", "16", "32"]):
        config = parse_config(CellConfig, "", ["--layer=1", "--position", "2", "--k_values=4", *words])
        assert (config.layer, config.position, config.latent_dims, config.k_values) == (1, 2, (16, 32), (4,))
    assert str(parse_config(GridConfig, "", ["--results=my_results"]).results) == "my_results"


@pytest.mark.parametrize(
    ("config_class", "words"), [(GridConfig, []), (CellConfig, ["--layer", "0", "--position", "0"])]
)
def test_a_list_of_latent_dims_has_one_name_and_its_old_spelling_is_read(config_class: type, words: list[str]) -> None:
    for spelling in ("--latent-dims", "--latent-dim", "--latent_dim"):
        config: Any = parse_config(config_class, "", [*words, spelling, "512", "256"])
        assert config.latent_dims == (512, 256)


@pytest.mark.parametrize(
    ("text", "indices"),
    [("all", None), ("3", (3,)), ("0-5", (0, 1, 2, 3, 4, 5)), ("0,7,14", (0, 7, 14)), ("2-3,0", (0, 2, 3))],
)
def test_a_selection_is_read_in_every_form(text: str, indices: tuple[int, ...] | None) -> None:
    assert Selection.parse(text).indices == indices
    assert parse_config(GridConfig, "", ["--layers", *text.split(",")]).layers.indices == indices


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1.5", "0-5-7"])
def test_what_is_no_selection_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        Selection.parse(text)


def test_an_absent_layer_is_named_with_those_that_exist() -> None:
    with pytest.raises(InputError, match="not among the layers: 4,9; there are 0-3"):
        Selection.parse("2,4,9").resolve([0, 1, 2, 3], "layers")


@given(st.sets(st.integers(0, 40), min_size=1))
def test_compact_is_the_inverse_of_parse(numbers: set[int]) -> None:
    assert Selection.parse(compact(list(numbers))).indices == tuple(sorted(numbers))


def test_errors_of_the_operating_system_and_ctrl_c_end_without_a_traceback(
    call: Callable[..., tuple[int, str, str]],
) -> None:
    def full() -> int:
        raise OSError(28, "No space left on device", "results/x.pt")

    def stopped() -> int:
        raise KeyboardInterrupt

    def vague() -> int:
        raise InputError("one\ntwo")

    assert call(full) == (2, "", "error: No space left on device: results/x.pt\n")
    assert call(vague) == (2, "", "error: one two\n")
    code, _, err = call(stopped)
    assert code == 130
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("config_class", "words", "message"),
    [
        (GridConfig, ["--layers", "0-3000000000"], "'0-3000000000' goes beyond 99,999"),
        (GridConfig, ["--positions", "9" * 5000], "goes beyond 99,999"),
        (GridConfig, ["--layers", "x" * 5000], "is not 'all', '3'"),
        (CellConfig, ["--position", "0", "--layer", "9" * 5000], "is not a whole number"),
        (CellConfig, ["--position", "0", "--layer", "1", "--seed", str(2**63)], "goes beyond 64 bits"),
        (GridConfig, ["--latent-dims", "16", str(10**25)], "goes beyond 64 bits"),
        (GridConfig, ["--workers", "100000"], "--workers must be at most 1,024, not 100,000"),
        (ExtractConfig, ["--model", "m", "--threads", "100000"], "--threads must be at most 1,024, not 100,000"),
    ],
)
def test_absurd_numbers_are_refused_in_one_short_line(
    config_class: type, words: list[str], message: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    def main() -> int:
        parse_config(config_class, "")
        return 0

    code, _, err = call(main, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert len(err) < 200


STREAMS = """
import sys
from thought_saes.common.command_line import run
from tests.helpers.paths import ROOT
from thought_saes.common.errors import InputError

def main() -> int:
    print("a path: caf\\u00e9 \\udc80")
    with open(sys.argv[1], "w") as file:
        print("in the file", file=file)
    if len(sys.argv) > 2:
        raise InputError("no caf\\u00e9 \\udc80")
    return 0

run(main)
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("fails", [False, True])
def test_closed_streams_and_poor_encodings_do_not_change_the_end(
    closed: str, encoding: str, fails: bool, tmp_path: Path
) -> None:
    command = f'"$0" -c "$1" "$2" {"fail" if fails else ""} {closed}'
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable, STREAMS, tmp_path / "out"], env=environment, capture_output=True
    )
    assert ended.returncode == (2 if fails else 0)
    assert (tmp_path / "out").read_text() == "in the file\n"
    assert b"Traceback" not in ended.stderr
    if fails and not closed:
        assert ended.stderr.startswith(b"error: no caf")
        assert ended.stderr.count(b"\n") == 1
