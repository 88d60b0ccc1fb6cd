"""A cell's rows as a recipe trains on them, and its SAEs before their first step."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from thought_saes.common.machine import float32_products
from thought_saes.results.names import SaeKey
from thought_saes.results.recipe import Recipe
from thought_saes.saes.moments import CHUNK_ROWS, chunks
from thought_saes.saes.sae import SparseAutoencoder
from thought_saes.saes.variant import extras_of, set_extras
from thought_saes.training.frame import Frame
from thought_saes.training.start import Spectrum, start_sae

SPECTRA_KEPT = 2  # cells: workers take the jobs of one before those of the next
_spectra: dict[tuple[str, Recipe], Spectrum] = {}


class Prepared:
    """A cell's training rows in the coordinates of the recipe, and what its SAEs start from."""

    def __init__(self, x: Tensor, recipe: Recipe, into: Tensor | None = None, fingerprint: str | None = None) -> None:
        """x (n, input_dim), which stays as it is. Framed rows are written to `into` if that is given.

        The spectrum is computed once for all that a process prepares with the same `fingerprint` of the activations.
        """
        self.recipe = recipe
        self.frame = Frame.of(x, recipe.whiten) if recipe.centre else None
        self.x = x if self.frame is None else self.frame.apply(x, into)
        self.spectrum = self._spectrum(fingerprint) if recipe.start == "components" else None

    def _spectrum(self, fingerprint: str | None) -> Spectrum:
        if fingerprint is None:
            return Spectrum.of(self.x)
        key = fingerprint, self.recipe
        if key not in _spectra:
            while len(_spectra) >= SPECTRA_KEPT:
                del _spectra[next(iter(_spectra))]
            _spectra[key] = Spectrum.of(self.x)
        return _spectra[key]

    def start(self, key: SaeKey, seed: int) -> SparseAutoencoder:
        """The SAE before its first step, in these coordinates."""
        sae = start_sae(key, seed, self.recipe, self.x, self.spectrum)
        with torch.no_grad():
            pre_acts = (sae.encoder(rows.cpu()) for rows in chunks(self.x, CHUNK_ROWS))
            set_extras(sae, sae.variant.begin(pre_acts, sae.k, len(self.x), extras_of(sae)))
        return sae

    @torch.no_grad()
    @float32_products("ieee")
    def finish(self, sae: SparseAutoencoder) -> None:
        """Bring a trained (or untrained) SAE into raw units, its inference's extras measured."""
        pre_acts = (sae.encoder(rows) for rows in chunks(self.x, CHUNK_ROWS))
        set_extras(sae, sae.variant.finish(pre_acts, sae.k, len(self.x), extras_of(sae)))
        if self.frame is not None:
            self.frame.fold(sae)


class AsStarted:
    """The SAEs of one cell as they were before their first step, each by the recipe and the seed of its own file.

    The control of what training brings: a start from the rows reconstructs well by itself. `rows()` gives the cell's
    training rows (n, input_dim); `seed` is for files that name none.
    """

    def __init__(self, rows: Callable[[], Tensor], seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._prepared: dict[Recipe, Prepared] = {}

    def of(self, trained: SparseAutoencoder, key: SaeKey) -> SparseAutoencoder:
        """In raw units, on the CPU."""
        recipe = replace(Recipe.of(trained.config), variant=trained.variant.name)
        if recipe not in self._prepared:
            self._prepared[recipe] = Prepared(self._rows(), recipe)
        seed = trained.config.get("seed")
        sae = self._prepared[recipe].start(key, self._seed if seed is None else seed)
        self._prepared[recipe].finish(sae)
        return sae.requires_grad_(False)
