"""What the results folder and the activations know beside single features, for their pages."""

from pathlib import Path

from thought_saes.activations.answers import ANSWERS_FILE, read_answers
from thought_saes.activations.cache import ActivationCache
from thought_saes.activations.cell import Cell
from thought_saes.common.schema import read_record
from thought_saes.downstream.edit_findings import EDITS_FILE
from thought_saes.downstream.edit_formats import EditsContent
from thought_saes.downstream.formats import SubstitutionContent
from thought_saes.downstream.records import SUBSTITUTION_FILE
from thought_saes.features.beside import Beside, Effect
from thought_saes.results.names import SaeKey


def read_beside(results: Path, cache: ActivationCache) -> Beside:
    """Raises DamagedFile if one of the files is there and is not what it should be."""
    answers = read_answers(cache.folder, cache.n_examples) if (cache.folder / ANSWERS_FILE).exists() else ()
    accuracy, effects = {}, {}
    if (path := results / SUBSTITUTION_FILE).exists():
        for one in read_record(path, SubstitutionContent).records:
            if one.condition == "sae" and one.position is not None and one.accuracy is not None:
                key = SaeKey(Cell(one.layer, one.position), one.latent_dim or 0, one.k or 0)
                accuracy[key] = one.accuracy
    if (path := results / EDITS_FILE).exists():
        for half in read_record(path, EditsContent).ablations:
            if half.agreement is not None and half.agreement_interval is not None:
                key = SaeKey(Cell(half.layer, half.position), half.latent_dim, half.k)
                numbers = half.n_questions, half.agreement, *half.agreement_interval
                effects[key, half.half] = Effect(*numbers, half.random_agreement)
    return Beside(answers, accuracy, effects)
