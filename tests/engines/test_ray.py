"""Ray under the same commands: the same files as without it, also when a node is lost in the middle.

One cluster of two nodes on this machine, with a core each.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import extract_activations
import substitute_thoughts
import train_all_layers_positions
import train_grid
from tests.helpers.codi_checkpoints import LORA_ALPHA, QUESTIONS, CodiFiles, write_codi
from tests.helpers.paths import ROOT
from tests.helpers.results import assert_same_results
from tests.helpers.substitution import as_examples, write_cache, write_questions, write_saes
from thought_saes.activations.cache import ActivationCache
from thought_saes.common.errors import InputError
from thought_saes.models.reasoner import LatentReasoner, Request
from thought_saes.models.source import ModelSource
from thought_saes.training.config import GridConfig

Call = Callable[..., tuple[int, str, str]]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
ray_engine = pytest.importorskip("thought_saes.engines.ray_cluster")
ray_training = pytest.importorskip("thought_saes.engines.ray_training")
Replicas = pytest.importorskip("thought_saes.engines.ray_extraction").Replicas

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    two_nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    two_nodes.add_node(**NODE)
    two_nodes.wait_for_nodes()
    yield two_nodes
    two_nodes.shutdown()


@pytest.fixture(scope="module")
def codi(tmp_path_factory: pytest.TempPathFactory) -> CodiFiles:
    return write_codi(tmp_path_factory.mktemp("codi"), "llama")


@pytest.fixture
def extract(call: Call, codi: CodiFiles, tmp_path: Path) -> Call:
    """A small extraction on one thread into the folder named first."""
    rows = [{"question": "how many " + "3 apples . " * (5 * row % 14) + "?", "answer": ""} for row in range(23)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", codi.checkpoint, "--base-model", codi.base, "--dataset", path, "--batch-size", 4]
    return lambda name, *more: call(
        extract_activations.main, *words, "--threads", 1, "--activations", tmp_path / name, *more
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_two_replicas_write_the_files_of_a_single_process(extract: Call, tmp_path: Path, cluster: Any) -> None:
    code, _, err = extract("ray", "--engine", "ray", "--ray-address", cluster.address)
    assert code == 0, err
    assert extract("local")[0] == 0
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_the_batches_of_a_replica_that_dies_go_to_the_other_and_come_in_order(codi: CodiFiles, cluster: Any) -> None:
    source = ModelSource(str(codi.checkpoint), str(codi.base), 32.0, "float32", None, "auto", threads=1)
    with ray_engine.cluster(cluster.address):
        model = Replicas(source, gpus_per_replica=1)
        batches = [model.tokenize([question, question + " a"]) for question in QUESTIONS * 3]
        assert model.replicas == 2
        states: list[np.ndarray] = []
        for state in (result.states for result in model.run(batches, Request((0, 2), (0, 1, 4), None))):
            if not states:
                ray.kill(model.living[1])
            states.append(state.copy())
        assert model.replicas == 1
        ray.kill(model.living[0])
        with pytest.raises(InputError, match="0 are left"):
            next(model.run(batches, Request((0, 2), (0,), None)))
    reasoner = source.load()
    for state, batch in zip(states, batches, strict=True):
        assert np.array_equal(state, reasoner.hidden_states(batch, [0, 2], [0, 1, 4]).numpy())


def test_a_cluster_that_is_not_there_is_one_line_at_once(extract: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free once this block ends
    for address in (f"127.0.0.1:{port}", "nonsense"):
        started = time.monotonic()
        code, _, err = extract("ray", "--engine", "ray", "--ray-address", address)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"no Ray cluster at --ray-address {address}" in err
        assert time.monotonic() - started < 10


def test_substitution_by_two_processes_writes_the_records_of_one(
    call: Call, codi: CodiFiles, cluster: Any, tmp_path: Path
) -> None:
    reasoner = LatentReasoner.load(str(codi.checkpoint), str(codi.base), LORA_ALPHA)
    texts = [f"how many {'3 apples . ' * (number % 5)} {number} ?" for number in range(60)]
    examples = as_examples(texts, [str(number % 7) for number in range(60)])
    write_saes(tmp_path / "local", write_cache(tmp_path / "act", reasoner, examples[:40], [1], [1, 2]), [16], [2])
    shutil.copytree(tmp_path / "local", tmp_path / "ray")
    words = ["--model", codi.checkpoint, "--base-model", codi.base, "--activations", tmp_path / "act", "--threads", 1]
    words += ["--dataset", write_questions(tmp_path / "test.jsonl", examples[40:]), "--max-new-tokens", 3]
    found = []
    for engine, more in (("ray", ["--ray-address", cluster.address]), ("local", [])):
        results = tmp_path / engine
        code, out, err = call(substitute_thoughts.main, *words, "--results", results, "--engine", engine, *more)
        assert code == 0, err
        assert out.endswith(f"30 records in {results / 'substitution.json'}\n")
        found.append(json.loads((results / "substitution.json").read_text())["records"])
    assert found[0] == found[1]


SMALL: list[Any] = ["--latent-dims", 24, 16, "--k-values", 2, 4, "--batch-size", 32, "--backend", "torch"]


def train(call: Call, activations: Path, results: Path, *more: object) -> tuple[int, str, str]:
    return call(train_all_layers_positions.main, *SMALL, "--activations", activations, "--results", results, *more)


def train_here(call: Call, activations: Path, results: Path, layers: tuple[int, ...], *more: object) -> None:
    """The same cells by `train_grid.py`, in this process."""
    words = [SMALL[0].removesuffix("s"), *SMALL[1:], "--activations", activations, "--results", results, *more]
    for layer in layers:
        for position in (0, 1):
            assert call(train_grid.main, "--layer", layer, "--position", position, *words)[0] == 0


def whole(path: Path) -> bool:
    """Whether nothing is to be added to a file of the results: metrics are written SAE by SAE."""
    by_latent_dim = json.loads(path.read_text()).get("results", {})
    return "plan" not in path.name and all(len(by_k) == 2 for by_k in by_latent_dim.values())


def busy_on(node: Any, results: Path) -> bool:
    """Whether a worker of the node has begun."""
    logs = [int(log.stem.rpartition("_")[2]) for log in results.glob("logs/worker_*.log")]
    return any(parent(pid) == node.all_processes["raylet"][0].process.pid for pid in logs)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(not Path("/proc").exists(), reason="tells a node's workers by /proc")
def test_a_node_killed_in_the_middle_costs_what_was_in_flight_and_nothing_else(
    call: Call, activations: Path, tmp_path: Path, cluster: Any
) -> None:
    long = ("--epochs", 1200)  # tasks that outlast the start of a process and the end of a node
    results = tmp_path / "results"
    [doomed] = cluster.worker_nodes
    done_before: dict[Path, int] = {}

    def kill_when_busy() -> None:
        deadline = time.monotonic() + 60
        while len(done := list(results.glob("*.json"))) < 4 or not busy_on(doomed, results):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        done_before.update({path: path.stat().st_mtime_ns for path in done if whole(path)})
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    code, out, err = train(call, activations, results, *long, "--engine", "ray", "--ray-address", cluster.address)
    killer.join()
    cluster.add_node(**NODE)
    assert code == 0, err
    assert "16 SAEs trained" in out
    assert 1 <= out.count("given out again") <= 2
    assert done_before
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    logs = "".join(log.read_text() for log in results.glob("logs/worker_*.log"))
    finished = re.findall(r"(layer \d position \d latent_dim \d+) k 2, 4: [\d.]+ s$", logs, flags=re.MULTILINE)
    assert len(finished) == len(set(finished)) <= 8
    record = json.loads((results / "last_run.json").read_text())
    assert (record["engine"], record["threads"], record["failures"]) == ("ray", 1, [])
    train_here(call, activations, tmp_path / "here", (0, 2), *long)
    (results / "grid_plan.json").unlink()  # train_grid.py plans no grid
    assert_same_results(results, tmp_path / "here")


def test_nodes_that_do_not_see_the_activations_get_them_through_the_object_store(
    call: Call, activations: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The main process sees other files than the workers, who find none of them.
    monkeypatch.setattr(ray_training.Stamp, "of", lambda path: ray_training.Stamp(1, 2))
    results = tmp_path / "results"
    words = ("--epochs", 2, "--layers", 0, "--cells-per-stack", 2, "--engine", "ray", "--ray-address", cluster.address)
    code, _, err = train(call, activations, results, *words)
    assert code == 0, err
    train_here(call, activations, tmp_path / "here", (0,), "--epochs", 2)
    (results / "grid_plan.json").unlink()
    assert_same_results(results, tmp_path / "here")


def test_a_task_that_ends_every_process_is_given_up_and_reported(
    call: Call, activations: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_training, "train_on_node", lambda *words: os._exit(1))
    monkeypatch.setattr(ray_training, "RETRIES", 1)
    words = ("--layers", 0, "--positions", 0, "--engine", "ray", "--ray-address", cluster.address)
    code, out, err = train(call, activations, tmp_path / "results", *words, "--latent-dims", 16)
    assert code == 1
    # In the order of their names: two processes may end in either.
    baselines, *failed = sorted(line for line in err.splitlines() if line.startswith("failed: "))
    assert len(failed) == 2
    assert "layer 0 position 0 baselines: 2 processes died with it (WorkerCrashedError" in baselines
    assert "layer 0 position 0 latent_dim 16 k 2: 2 processes died with it (WorkerCrashedError" in failed[0]
    assert out.count("given out again") == 2  # of each job


def test_a_node_that_does_not_see_the_results_is_named(
    call: Call, activations: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda path: None)  # what tells a node that it sees the folder
    words = ("--layers", 0, "--engine", "ray", "--ray-address", cluster.address)
    code, _, err = train(call, activations, tmp_path / "results", *words)
    assert code == 2
    assert err.splitlines()[-1].endswith(
        f"does not see {tmp_path / 'results'}: put --results on a file system that all nodes share"
    )


EIGHT_GPUS, TWO_CORES = {"CPU": 4.0, "GPU": 8.0}, {"CPU": 2.0}


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits"),
    [(0, 1, 8), (0, 1 / 3, 24), (0, 3, 2), (1, 0, 6), (2, 0, 3), (3, 0, 1), (0, 9, 0), (1, 1, 4)],
)
def test_a_share_fits_as_often_as_each_node_holds_it(
    cpus: int, gpus: float, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "nodes", lambda: [EIGHT_GPUS, TWO_CORES])
    share = ray_engine.Share(cpus, gpus)
    assert share.fits() == fits
    if not fits:
        with pytest.raises(InputError, match="0 cores and 9 GPUs for a task: the largest have 4 and 8"):
            ray_engine.check_fits(share)


def test_work_goes_to_gpus_where_there_are_some_and_nobody_chooses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "nodes", lambda: [TWO_CORES, EIGHT_GPUS])
    assert [ray_engine.takes_gpu(device) for device in ("auto", "cuda", "cpu")] == [True, True, False]
    with pytest.raises(InputError, match="not cuda:1"):
        ray_engine.takes_gpu("cuda:1")
    monkeypatch.setattr(ray_engine, "nodes", lambda: [TWO_CORES])
    assert not ray_engine.takes_gpu("auto")
    with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
        ray_engine.takes_gpu("cuda")


def test_a_stack_spans_no_more_cells_than_leave_every_worker_several_stacks(
    activations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "nodes", lambda: [EIGHT_GPUS, TWO_CORES])  # 24 thirds of a GPU
    monkeypatch.setattr(ray_training, "answer", lambda ref: 80 << 30)
    monkeypatch.setattr(ray_training.RayJobs, "_remote", lambda *words: SimpleNamespace(remote=lambda: None))

    def cells_that_fit(n_stacks: int) -> int:
        asked: list[Any] = []

        def eight_fit(config: GridConfig, cache: ActivationCache, *words: Any) -> int:
            asked.append(words)
            return 8

        monkeypatch.setattr(ray_training, "cells_that_fit", eight_fit)
        config, cache = GridConfig(activations=activations), ActivationCache(activations)
        chosen = ray_training.RayJobs(config, cache, n_stacks).cells_that_fit(512)
        assert asked == [(512, 3, 80 << 30)]
        return chosen

    assert [cells_that_fit(n_stacks) for n_stacks in (288, 672, 10_000, 3)] == [3, 7, 8, 1]


def test_a_ray_address_without_the_engine_is_refused(extract: Call, call: Call, activations: Path) -> None:
    message = "error: --ray-address auto is for --engine ray\n"
    assert extract("out", "--ray-address", "auto") == (2, "", message)
    assert call(train_all_layers_positions.main, "--activations", activations, "--ray-address", "auto")[2] == message


def test_without_ray_the_engine_names_what_to_install(extract: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = extract("ray", "--engine", "ray")
    assert (code, err) == (2, "error: --engine ray needs ray: pip install -r requirements-cluster.txt\n")


def test_without_the_engine_ray_is_not_imported() -> None:
    scripts = ["extract_activations", "train_grid", "train_all_layers_positions"]
    look = f"import sys, {', '.join(scripts)}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False, cwd=ROOT).returncode == 0
