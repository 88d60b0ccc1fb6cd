"""Error prediction: areas under curves by hand, probes that never see their question, the published question."""

import numpy as np
import pytest

from thought_saes.activations.formats import AnswerLine
from thought_saes.common.errors import InputError
from thought_saes.downstream.auroc import auroc, aurocs, divisions, folds, out_of_fold, within_strata
from thought_saes.downstream.error_prediction import Rows, chosen_on_halves, halves, published_question, read_rows
from thought_saes.downstream.statistics import resample_weights


def test_the_area_is_the_share_of_pairs_in_order_ties_half() -> None:
    # Wrong rows score 3 and 1; right rows 2, 1 and 0. Pairs: 3 beats all three, 1 beats 0 and ties with 1: 4.5 of 6.
    scores, wrong = np.array([3.0, 1, 2, 1, 0]), np.array([True, True, False, False, False])
    assert auroc(scores, wrong) == pytest.approx(0.75)
    # The wrong row of score 1 twice: pairs 3 * 1 + 2 * 1.5 = 6 of 9.
    weights = np.array([1.0, 2, 1, 1, 1])
    assert auroc(scores, wrong, weights) == pytest.approx(6 / 9)
    assert aurocs(scores, wrong, np.stack([np.ones(5), weights], axis=1)) == pytest.approx([0.75, 6 / 9])
    assert np.isnan(auroc(scores, np.ones(5, dtype=bool)))


def test_strata_count_by_their_pairs() -> None:
    # Stratum a: one pair in order. Stratum b: two pairs, both out of order. (1 * 1 + 2 * 0) / 3.
    scores, wrong = np.array([2.0, 1, 0, 5, 6]), np.array([True, False, True, False, False])
    assert within_strata(scores, wrong, ["a", "a", "b", "b", "b"]) == pytest.approx(1 / 3)


def made_rows(n: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.3
    return Rows(wrong, np.arange(n), rng.standard_normal((n, 2)), np.ones(n), np.arange(n))


def test_features_that_tell_errors_are_found_and_noise_is_not() -> None:
    rows, rng = made_rows(300), np.random.default_rng(1)
    noise = rng.standard_normal((300, 40))
    told = noise.copy()
    told[:, 3] += 2 * rows.wrong
    divided = divisions(rows.wrong, rows.groups, 1, 0)
    assert auroc(out_of_fold(told, rows.wrong, divided), rows.wrong) > 0.85
    assert 0.35 < auroc(out_of_fold(noise, rows.wrong, divided), rows.wrong) < 0.65


def test_a_question_that_comes_twice_is_never_on_both_sides() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(80), 2)
    wrong = np.repeat(rng.random(80) < 0.4, 2)
    for train, test in folds(wrong, groups, 0):
        assert not set(groups[train]) & set(groups[test])
    for first, second in halves(groups, 3, 0):
        assert not set(groups[first]) & set(groups[second])
        assert (first ^ second).all()
    # Features that name the question itself would tell all if its twin were seen.
    x = np.eye(80)[groups]
    assert auroc(out_of_fold(x, wrong, divisions(wrong, groups, 1, 0)), wrong) < 0.65


def configurations(rows: Rows, informative: bool) -> tuple[list[dict[str, float | int]], np.ndarray]:
    """12 configurations whose scores tell errors the better the lower their fvu, or not at all."""
    rng = np.random.default_rng(3)
    configs: list[dict[str, float | int]] = []
    scores = []
    for place in range(12):
        strength = place / 6 if informative else 1.0
        scores.append(strength * rows.wrong + rng.standard_normal(len(rows.wrong)))
        fvu = 1 - place / 12 if informative else float(rng.random())
        configs.append(
            {"layer": place % 3, "position": 0, "latent_dim": 8, "k": place // 3, "fvu": fvu}
            | {"explained_variance": 1 - fvu, "auroc": auroc(scores[-1], rows.wrong)}
        )
    return configs, np.stack(scores)


def test_the_published_question_is_answered_by_rank_with_interval_and_ceiling() -> None:
    rows = made_rows(600)
    weights = resample_weights(0, range(600), 100)
    for informative in (True, False):
        answer = published_question(*configurations(rows, informative), rows, weights, 0)
        found = answer["fvu_overall"]
        assert answer["explained_variance_overall"]["spearman"] == pytest.approx(-found["spearman"])
        if informative:
            assert found["spearman"] < -0.9
            assert found["interval"][1] < -0.5
            assert answer["ceiling"] > 0.9
        else:
            assert found["interval"][0] < 0 < found["interval"][1]
            assert answer["ceiling"] < 0.8


def test_the_best_of_many_is_quoted_where_it_was_not_chosen() -> None:
    rows = made_rows(200)
    configs, scores = configurations(rows, False)
    scores = np.random.default_rng(5).standard_normal(scores.shape)
    found = chosen_on_halves(configs, scores, rows, 0)
    assert found["auroc_where_chosen"] > 0.55
    assert 0.4 < found["auroc"] < 0.56


def test_a_model_that_is_never_wrong_is_refused() -> None:
    answer = AnswerLine(0, "3", 3.0, 3.0, correct=True, entropy=0.1, margin=0.9, log_probability=-0.1)
    examples = [{"question": f"how many {n} ?", "answer": "3"} for n in range(60)]
    with pytest.raises(InputError, match="0 of 60 answers with a number are wrong"):
        read_rows(examples, [answer] * 60)
