"""The four commands of the README, one after another, on a tiny model, and a look at what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.helpers.codi_checkpoints import INPUT_DIM, N_LAYERS, QUESTIONS, write_codi
from tests.helpers.paths import ROOT
from thought_saes.figures.maps import ALL_K_FIGURES, SINGLE_FIGURES
from thought_saes.saes.sae import TopKSAE


def shell(script: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_four_commands_lead_from_questions_to_figures(tmp_path: Path) -> None:
    files = write_codi(tmp_path, "llama")
    records = [{"question": f"{question} {n}", "answer": f"#### {n}"} for n in range(12) for question in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    activations, results = tmp_path / "activations", tmp_path / "results"
    data = ["--dataset", tmp_path / "questions.jsonl", "--activations", activations, "--positions", "0-2"]
    shell("extract_activations.py", "--model", files.checkpoint, "--base-model", files.base, *data)
    training = ["--latent-dims", 16, 32, "--k-values", 2, 5, "--epochs", 2, "--batch-size", 16]
    shell("train_all_layers_positions.py", *training, "--activations", activations, "--results", results)
    tables = shell("analyze_all_layers.py", "--results", results)
    shell("visualize_all_layers.py", "--results", results)

    n_saes = N_LAYERS * 3 * 2 * 2
    assert len(list(results.glob("*.pt"))) == n_saes
    assert {path.name for path in results.glob("*.png")} >= {*SINGLE_FIGURES, *ALL_K_FIGURES}
    assert "## 5. Limitations" in (results / "report.md").read_text()
    summary = json.loads((results / "analysis_summary.json").read_text())
    assert summary["total_saes"] == n_saes
    assert (summary["layers"], summary["positions"]) == ([0, 1, 2], [0, 1, 2])
    best = summary["best_configs"]["highest_ev"]
    assert f"{best['explained_variance']:.4f}"[:5] in tables
    name = f"pos{best['position']}_layer{best['layer']}_d{best['latent_dim']}_k{best['k']}.pt"
    sae = TopKSAE.load(results / name)
    assert sae.metrics["explained_variance"] == best["explained_variance"]
    x = torch.tensor(np.load(activations / f"pos{best['position']}_layer{best['layer']}.npy", mmap_mode="r")[:7])
    assert x.shape == (7, INPUT_DIM)
    assert int((sae.encode(x) != 0).sum(dim=1).max()) <= best["k"]
