"""The house: imports run one way, no module hides one of PyPI, files stay small."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "thought_saes"
# Data flows down this list; a folder imports from itself and from those above it.
FOLDERS = [
    *("common", "models", "activations", "saes", "results", "training", "engines"),
    *("features", "downstream", "exports", "analysis", "figures", "reporting"),
]
LONG = {
    "thought_saes/training/fused/kernels.py": "Numba's cache misses a change in another file",
    "thought_saes/models/reasoner.py": "one class, whose methods share the model, its tokenizer and its template",
    "thought_saes/downstream/substitution.py": "one protocol: conditions, regimes and readouts of the same rollout",
}


def imports(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def folders_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("thought_saes.")}


def test_the_folders_are_those_of_the_list() -> None:
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert there == set(FOLDERS)


def test_imports_run_only_up_the_list() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {folder}"
        for place, name in enumerate(FOLDERS)
        for path in sorted((PACKAGE / name).rglob("*.py"))
        for folder in sorted(folders_of(imports(path)) & set(FOLDERS[place + 1 :]))
    ]
    assert not wrong


def test_the_package_imports_no_script_and_no_test() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")} | {"tests", "benchmarks", "demo"}
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not {name.split(".")[0] for name in imports(path)} & scripts, path


def test_no_file_changes_where_modules_are_looked_for() -> None:
    places = [*ROOT.glob("*.py"), *(path for folder in ("thought_saes", "benchmarks", "demo", "tests")
              for path in (ROOT / folder).rglob("*.py"))]  # fmt: skip
    trick = "sys." + "path."
    assert not [path for path in places if trick in path.read_text()]


def test_no_module_of_ours_hides_an_installed_one() -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} | {"thought_saes", "benchmarks"}
    theirs = {name for name, owners in packages_distributions().items() if set(owners) != {"thought-saes"}}
    assert not ours & (theirs | sys.stdlib_module_names)


def test_scripts_are_thin_and_modules_short() -> None:
    folders = (PACKAGE, ROOT / "benchmarks", ROOT / "demo")
    modules = [path for folder in folders for path in folder.rglob("*.py")]
    long = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in modules}
    assert not {name: n for name, n in long.items() if n > 300 and name not in LONG}
    scripts = {path.name: path.read_text().count("\n") for path in ROOT.glob("*.py")}
    assert not {name: n for name, n in scripts.items() if n > 140}


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("analyze_all_layers", {"torch", "matplotlib"}),
        ("visualize_all_layers", {"torch"}),
        ("compare_runs", {"torch", "matplotlib"}),
        ("train_grid", {"pandas", "transformers", "scipy.stats"}),
    ],
)
def test_a_script_starts_without_the_packages_that_it_does_not_compute_with(script: str, packages: set[str]) -> None:
    words = f"import sys, {script}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not packages & set(done.stdout.split())
