"""The kernel that selects gives what the variants give; where it cannot be had, they select."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.paths import ROOT
from thought_saes.saes.variants import VARIANTS
from thought_saes.training import selectors

# Triton decides when it is imported whether its kernels run in its interpreter, without a GPU: in a process of its own.
IN_THE_INTERPRETER = """
import numpy, torch
from thought_saes.saes.variants import VARIANTS
from thought_saes.training.selectors import ByVariant, gives_the_same
from thought_saes.training.triton_selection import OneKernel

def found(selector, pre_acts):
    latents = torch.full_like(pre_acts, torch.nan)
    fired = torch.zeros(pre_acts.shape[0], pre_acts.shape[2], dtype=torch.bool)
    fired[0, 0] = True  # what fired before, stays
    return latents, fired, *selector(pre_acts, latents, fired)

device = torch.device("cpu")
for rule in OneKernel.rules:
    assert gives_the_same(OneKernel, rule, device)
    for n_rows, latent_dim, k_values in ((1, 1, (1,)), (3, 33, (1, 5, 33)), (4, 64, (2, 2)), (2, 200, (7, 100))):
        pre_acts = torch.randn(len(k_values), n_rows, latent_dim, generator=torch.Generator().manual_seed(latent_dim))
        expected = found(ByVariant(VARIANTS[rule], k_values, torch.zeros(())), pre_acts)
        ours = found(OneKernel(rule, k_values, device), pre_acts)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)), (rule, latent_dim)
    # Negative rows: AbsTopK selects, TopK does not, and the k-th largest is told all the same.
    below = -torch.rand(1, 3, 20, generator=torch.Generator().manual_seed(0))
    expected = found(ByVariant(VARIANTS[rule], (4,), torch.zeros(())), below)
    assert all(torch.equal(a, b) for a, b in zip(found(OneKernel(rule, (4,), device), below), expected, strict=True))
    # Of equal values as many as k, and the magnitudes that topk chooses.
    equal = torch.tensor([[[2.0, 1, 1, -1, 1, 0, 3, 1]]])
    latents, _, selected, smallest = found(OneKernel(rule, (4,), device), equal)
    assert selected.sum() == 4 and smallest.item() == 1
    assert latents.abs().sort().values.tolist() == [[[0, 0, 0, 0, 1, 1, 2, 3]]]
    # Infinities and NaN stand above all numbers, as they do for topk.
    wild = torch.tensor([[[1.0, torch.inf, torch.nan, 5.0]]])
    assert found(OneKernel(rule, (2,), device), wild)[2][0, 0, 1]
print("the same")
"""

# Without a GPU the kernel can at least be compiled for one.
FOR_AN_A100_AND_AN_H100 = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from thought_saes.training.triton_selection import select_of_a_row

types = dict(pre_acts="*fp32", k_values="*i32", latents="*fp32", selected="*u8", smallest="*fp32", fired="*u8")
types |= dict(n_rows="i32", latent_dim="i32", MAGNITUDES="constexpr", N="constexpr")
for architecture in (80, 90):
    for magnitudes in (True, False):
        source = ASTSource(select_of_a_row, types, constexprs=dict(MAGNITUDES=magnitudes, N=2048))
        assert compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(num_warps=4)).asm["cubin"]
print("compiled")
"""


@pytest.mark.parametrize(
    ("code", "interpreted", "said"), [(IN_THE_INTERPRETER, "1", "the same"), (FOR_AN_A100_AND_AN_H100, "0", "compiled")]
)
def test_the_kernel_selects_as_the_variants_do(code: str, interpreted: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux alone")
    environment = {"TRITON_INTERPRET": interpreted, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{said}\n"), ended.stderr


class Wrong(selectors.ByVariant):
    """A kernel that takes one too few."""

    rules = ("abstopk",)

    def __init__(self, rule: str, k_values: tuple[int, ...], device: torch.device) -> None:
        super().__init__(VARIANTS[rule], [k - 1 for k in k_values], torch.zeros((), device=device))


class Right(Wrong):
    def __init__(self, rule: str, k_values: tuple[int, ...], device: torch.device) -> None:
        selectors.ByVariant.__init__(self, VARIANTS[rule], k_values, torch.zeros((), device=device))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Kernels for the CPU, in a module that a test fills."""
    module = SimpleNamespace(OneKernel=Right, LONGEST_ROW=64)
    monkeypatch.setattr(selectors, "KERNELS", {"cpu": "kernels"})
    monkeypatch.setitem(sys.modules, "kernels", module)
    selectors.kernels_for.cache_clear()
    yield module
    selectors.kernels_for.cache_clear()


def chosen(rule: str = "abstopk", latent_dim: int = 64) -> type:
    return type(selectors.selector_of(VARIANTS[rule], (2, 3), latent_dim, torch.zeros(())))


def test_a_kernel_is_taken_where_it_has_the_rule_and_room(kernels: Any) -> None:
    assert chosen() is Right
    assert chosen(rule="topk") is selectors.ByVariant
    assert chosen(latent_dim=65) is selectors.ByVariant


def test_a_kernel_that_gives_something_else_is_not_taken(kernels: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kernels.OneKernel = Wrong
    assert chosen() is selectors.ByVariant
    assert "abstopk comes out otherwise than by its rule" in capsys.readouterr().err


def test_without_a_compiler_the_variant_selects(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)  # as where it is not installed
    assert chosen() is chosen() is selectors.ByVariant
    assert capsys.readouterr().err.count("selecting without a kernel of its own") == 1
