"""Do features foretell wrong answers, and do configurations that reconstruct better foretell them better?

Probes are fitted and judged out of fold, questions kept together. Nothing is reported as the best of many by the
AUROC that it is judged on: the best configuration is chosen on one half of the questions and quoted on the other.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.activations.formats import AnswerLine
from thought_saes.common.errors import InputError
from thought_saes.common.processes import done_side_by_side
from thought_saes.downstream.auroc import auroc, aurocs, divisions, out_of_fold, within_strata
from thought_saes.downstream.statistics import INTERVAL, resample_weights
from thought_saes.downstream.substitutes import Condition, Questions, Substitutes
from thought_saes.models.numbers import NUMBER
from thought_saes.results.names import SaeKey
from thought_saes.saes.moments import Moments, explained_variance, fraction_of_variance_unexplained

FEWEST_OF_EACH = 20  # right and wrong answers
N_HALVES = 50  # divisions into halves, for the ceiling
SURENESS = ("entropy", "margin", "log_probability")


class Rows(NamedTuple):
    """The answered questions."""

    wrong: np.ndarray  # (n,) bool
    groups: np.ndarray  # (n,): equal where the question is the same
    baselines: np.ndarray  # (n, n_baselines)
    steps: np.ndarray  # (n,): worked steps of the gold answer, the oracle
    kept: np.ndarray  # rows of the activations


def read_rows(examples: Sequence[dict[str, Any]], answers: Sequence[AnswerLine]) -> Rows:
    """The questions with a gold answer and a number said. Raises InputError if too few are right or wrong."""
    kept = [row for row, a in enumerate(answers) if a.gold is not None and a.number is not None]
    wrong = np.array([not answers[row].correct for row in kept], dtype=bool)
    if min(wrong.sum(), (~wrong).sum()) < FEWEST_OF_EACH:
        raise InputError(
            f"{int(wrong.sum())} of {len(kept)} answers with a number are wrong: errors cannot be foretold with fewer "
            f"than {FEWEST_OF_EACH} right and {FEWEST_OF_EACH} wrong ones"
        )
    texts = [examples[row]["question"] for row in kept]
    _, groups = np.unique(texts, return_inverse=True)
    columns = [[getattr(answers[row], name) for row in kept] for name in SURENESS]
    columns += [[len(text) for text in texts], [len(NUMBER.findall(text)) for text in texts]]
    return Rows(
        wrong,
        groups,
        np.array(columns, dtype=float).T,
        np.array([n_steps(examples[row]) for row in kept], dtype=float),
        np.array(kept),
    )


def n_steps(example: dict[str, Any]) -> int:
    """How many steps the worked answer has."""
    if isinstance(example.get("operations"), list):
        return len(example["operations"])
    marked = re.findall(r"<<[^>]*>>", example["answer"] or "")
    return len(marked) or (example["answer"] or "").count("\n")


class Judge:
    """Out-of-fold scores, their AUROC with its interval, and what they add to the baselines."""

    def __init__(self, rows: Rows, n_repeats: int, seed: int) -> None:
        self.rows, self._divided = rows, divisions(rows.wrong, rows.groups, n_repeats, seed)
        self.weights = resample_weights(seed, range(int(rows.groups.max()) + 1))[rows.groups]
        self.baseline_scores = self.scores(rows.baselines)
        self._baseline_resampled = aurocs(self.baseline_scores, rows.wrong, self.weights)

    def scores(self, x: np.ndarray) -> np.ndarray:
        return out_of_fold(x, self.rows.wrong, self._divided)

    def record(self, scores: np.ndarray) -> dict[str, Any]:
        """AUROC with its interval, and within numbers of worked steps."""
        return {
            "auroc": auroc(scores, self.rows.wrong),
            "auroc_interval": percentiles(aurocs(scores, self.rows.wrong, self.weights)),
            "auroc_within_steps": within_strata(scores, self.rows.wrong, list(self.rows.steps)),
        }

    def judge(self, x: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """The record of features x (n, d), and their scores; `delta_auroc` is baselines + x over the baselines."""
        scores, both = self.scores(x), self.scores(np.concatenate([self.rows.baselines, x], axis=1))
        resampled = aurocs(both, self.rows.wrong, self.weights) - self._baseline_resampled
        record = self.record(scores) | {
            "delta_auroc": auroc(both, self.rows.wrong) - auroc(self.baseline_scores, self.rows.wrong),
            "delta_auroc_interval": percentiles(resampled),
        }
        return record, scores


def percentiles(values: np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    return [float(value) for value in np.percentile(values, INTERVAL)] if len(values) else None


@torch.no_grad()
def features_of_cell(
    cache: ActivationCache, made: Substitutes, rows: np.ndarray, latent_dims: Sequence[int], k_values: Sequence[int]
) -> list[tuple[Condition, str, np.ndarray, dict[str, float]]]:
    """What is judged at a cell: (what, kind, features (n, d), how well it reconstructs)."""
    x = torch.from_numpy(np.ascontiguousarray(cache.cell(made.cell)[rows])).float()
    none = Questions(torch.empty(0), torch.empty(0))
    found: list[tuple[Condition, str, np.ndarray, dict[str, float]]] = [(Condition("own"), "raw", x.numpy(), {})]
    for k in k_values:
        found.append((Condition("pca", None, k), "pca", made.apply(Condition("pca", None, k), x, none).numpy(), {}))
    middle = k_values[len(k_values) // 2]
    for latent_dim in latent_dims:
        for k in k_values:
            sae = made.sae(Condition("sae", latent_dim, k))
            latents = sae.encode(x)
            original, error = Moments(), Moments()
            original.add(x)
            error.add(x - sae.decode(latents))
            quality = {
                "fvu": fraction_of_variance_unexplained(original, error),
                "explained_variance": explained_variance(original, error),
            }
            found.append((Condition("sae", latent_dim, k), "sae", latents.numpy(), quality))
            if k == middle and latent_dim == latent_dims[-1]:
                found.append((Condition("sae", latent_dim, k), "reconstruction", sae(x).numpy(), quality))
                untrained = made.sae(Condition("untrained", latent_dim, k)).encode(x).numpy()
                found.append((Condition("untrained", latent_dim, k), "untrained", untrained, {}))
    return found


class CellJob(NamedTuple):
    """A cell whose features are judged."""

    judge: Judge
    cache: ActivationCache  # of the answered questions
    made: Substitutes  # of the activations that the SAEs were trained on
    saes: list[SaeKey]

    def run(self) -> tuple[Cell, list[dict[str, Any]], list[np.ndarray]]:
        """The records of all features, and the scores of those of trained SAEs, in the same order."""
        cell, records, scores_of_saes = self.made.cell, [], []
        latent_dims = sorted({key.latent_dim for key in self.saes})
        k_values = sorted({key.k for key in self.saes})
        for what, kind, x, quality in features_of_cell(
            self.cache, self.made, self.judge.rows.kept, latent_dims, k_values
        ):
            record, scores = self.judge.judge(x)
            about = {"layer": cell.layer, "position": cell.position, "features": kind}
            records.append(about | {"latent_dim": what.latent_dim, "k": what.k} | quality | record)
            if kind == "sae":
                scores_of_saes.append(scores)
        return cell, records, scores_of_saes


def evaluate(
    cache: ActivationCache,
    rows: Rows,
    substitutes: Callable[[Cell], Substitutes],
    saes: Sequence[SaeKey],
    n_repeats: int,
    seed: int,
    workers: int,
    on_progress: Callable[[int], object],
) -> dict[str, Any]:
    """Everything of `error_prediction.json` but its metadata. `on_progress(1)`: a cell is done."""
    judge = Judge(rows, n_repeats, seed)
    cells = sorted({key.cell for key in saes})
    jobs = [CellJob(judge, cache, substitutes(cell), [key for key in saes if key.cell == cell]) for cell in cells]
    found = []
    for of_cell in done_side_by_side(CellJob.run, jobs, workers):
        found.append(of_cell)
        on_progress(1)
    found.sort(key=lambda of_cell: of_cell[0])
    records = [record for _, some, _ in found for record in some]
    configs = [record for record in records if record["features"] == "sae"]
    scores_of_saes = [scores for *_, some in found for scores in some]
    oracle = judge.record(judge.scores(rows.steps[:, None]))
    answer = published_question(configs, np.stack(scores_of_saes), rows, judge.weights, seed)
    return {
        "n_questions": len(rows.wrong),
        "n_wrong": int(rows.wrong.sum()),
        "baselines": judge.record(judge.baseline_scores),
        "oracle_steps": oracle,
        "records": records,
        "best_chosen_on_one_half": chosen_on_halves(configs, np.stack(scores_of_saes), rows, seed),
        "published_question": answer,
    }


def chosen_on_halves(configs: Sequence[dict[str, Any]], scores: np.ndarray, rows: Rows, seed: int) -> dict[str, float]:
    """The AUROC of the configuration that is best on one half of the questions, on the other half; their means."""
    found = []
    for first, second in halves(rows.groups, N_HALVES, seed):
        on_first = [auroc(one[first], rows.wrong[first]) for one in scores]
        on_second = [auroc(one[second], rows.wrong[second]) for one in scores]
        best = int(np.nanargmax(on_first))
        found.append((on_first[best], on_second[best], float(np.nanmedian(on_second))))
    chosen, honest, median = np.nanmean(np.array(found), axis=0)
    return {"auroc_where_chosen": float(chosen), "auroc": float(honest), "auroc_of_the_median": float(median)}


def halves(groups: np.ndarray, n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divisions of the questions into two halves, as masks of the rows."""
    rng = np.random.default_rng([seed, 4])
    chosen = [rng.permutation(int(groups.max()) + 1) % 2 == 0 for _ in range(n)]
    return [(mask[groups], ~mask[groups]) for mask in chosen]


def published_question(
    configs: Sequence[dict[str, Any]], scores: np.ndarray, rows: Rows, weights: np.ndarray, seed: int
) -> dict[str, Any]:
    """Spearman's rank correlation of reconstruction with AUROC over configurations, with interval and ceiling.

    `overall` over all; `within_cell` the mean over cells; `between_cells` over cells at one configuration, the mean;
    `within_k` over cells and latent_dims at one k, the mean. Intervals resample questions and cells together. The
    reliability is that of split halves of the questions, corrected by Spearman and Brown: nothing can correlate with
    the AUROCs more than its square root, the ceiling.
    """
    resampled = np.stack([aurocs(one, rows.wrong, weights) for one in scores])  # (n_configs, n_resamples)
    whole = np.array([config["auroc"] for config in configs])
    reliability = []
    for first, second in halves(rows.groups, N_HALVES, seed):
        pair = [np.array([auroc(one[half], rows.wrong[half]) for one in scores]) for half in (first, second)]
        reliability.append(rank_correlation(*pair))
    half = float(np.nanmean(reliability))
    spearman_brown = 2 * half / (1 + half) if half > 0 else 0.0
    answer: dict[str, Any] = {
        "n_configurations": len(configs),
        "reliability": spearman_brown,
        "ceiling": spearman_brown**0.5,
    }
    cells = sorted({(config["layer"], config["position"]) for config in configs})
    place = {cell: index for index, cell in enumerate(cells)}
    cell_of = np.array([place[config["layer"], config["position"]] for config in configs])
    rng = np.random.default_rng([seed, 5])
    draws = [rng.integers(len(cells), size=len(cells)) for _ in range(resampled.shape[1])]
    for name in ("explained_variance", "fvu"):
        quality = np.array([config[name] for config in configs])
        for over, families in families_of(configs).items():
            estimate = mean_correlation(quality, whole, families)
            spread = []
            for draw, aurocs_then in zip(draws, resampled.T, strict=True):
                counts = np.bincount(draw, minlength=len(cells))[cell_of]
                spread.append(mean_correlation(quality, aurocs_then, families, counts))
            answer[f"{name}_{over}"] = {"spearman": estimate, "interval": percentiles(np.array(spread))}
    return answer


def families_of(configs: Sequence[dict[str, Any]]) -> dict[str, list[np.ndarray]]:
    """Which configurations are compared with one another, as lists of indices."""
    by: dict[str, dict[Any, list[int]]] = {
        name: defaultdict(list) for name in ("within_cell", "between_cells", "within_k")
    }
    for index, config in enumerate(configs):
        by["within_cell"][config["layer"], config["position"]].append(index)
        by["between_cells"][config["latent_dim"], config["k"]].append(index)
        by["within_k"][config["k"]].append(index)
    families = {name: [np.array(family) for family in members.values()] for name, members in by.items()}
    return {"overall": [np.arange(len(configs))]} | families


def mean_correlation(
    quality: np.ndarray, values: np.ndarray, families: Sequence[np.ndarray], counts: np.ndarray | None = None
) -> float:
    """The mean over families of the rank correlation, each configuration as often as `counts` says."""
    found = []
    for family in families:
        members = family if counts is None else np.repeat(family, counts[family])
        found.append(rank_correlation(quality[members], values[members]))
    known = [value for value in found if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; NaN of fewer than three, or where one of them does not vary."""
    if len(one) < 3 or len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
