"""What else is known of the features on a page: the model's answers, and what edits of its loop did."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from thought_saes.activations.cell import Cell
from thought_saes.activations.formats import AnswerLine
from thought_saes.results.names import SaeKey


class Effect(NamedTuple):
    """Of a half that was taken out of the thought where it fires."""

    n_questions: int
    agreement: float  # share of the unmodified answers that stay
    low: float  # of its interval
    high: float
    random_agreement: float | None  # where a random direction of the same length was added instead


class Beside(NamedTuple):
    """Empty where the folders hold nothing of it."""

    answers: Sequence[AnswerLine]  # a row of the activations each
    accuracy: Mapping[SaeKey, float]  # with the SAE's reconstruction in the thought's place
    effects: Mapping[tuple[SaeKey, str], Effect]  # by half


NOTHING = Beside((), {}, {})


def effect_in_words(half: pd.Series, effects: Mapping[tuple[SaeKey, str], Effect]) -> str:
    """`; taking it out changes 12% of the answers`, or nothing if nobody has measured it."""
    key = SaeKey(Cell(int(half["layer"]), int(half["position"])), int(half["latent_dim"]), int(half["k"]))
    found = effects.get((key, half["half"]))
    if found is None:
        return ""
    against = "" if found.random_agreement is None else f", a random edit as long {1 - found.random_agreement:.0%}"
    return f"; taking it out changes {1 - found.agreement:.0%} of the answers{against}"
