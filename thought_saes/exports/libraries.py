"""Every library that SAEs can be written for, by its name in --format."""

from thought_saes.exports.dictionary_learning import DictionaryLearning
from thought_saes.exports.library import Library
from thought_saes.exports.saelens import SAELens
from thought_saes.exports.sparsify import Sparsify

LIBRARIES: dict[str, Library] = {library.name: library for library in (SAELens(), Sparsify(), DictionaryLearning())}
