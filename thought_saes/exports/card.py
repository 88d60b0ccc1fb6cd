"""The model card of a folder of exported SAEs: what they are of, how they were trained, how well they do."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thought_saes.common.text import number, percent, section, table
from thought_saes.exports.library import Exported, Library
from thought_saes.results.names import AXES, SaeKey, checkpoint_path

OF_ONE_SAE = {*AXES, "input_dim"}  # stand in the table of SAEs
MIRRORED = (
    "AbsTopK keeps negative latents, which {title} has not. Each SAE is therefore written with twice its latents: "
    "latent f is feature f where it is positive, latent latent_dim + f the same feature where it is negative. "
    "Reconstructions are the same."
)


class Listed:
    """What the card says of one SAE: all but its weights."""

    def __init__(self, sae: Exported) -> None:
        self.key, self.config, self.metrics, self.origin = sae.key, dict(sae.config), dict(sae.metrics), sae.origin
        self.variant, self.input_dim = sae.weights.variant, sae.weights.input_dim

    @property
    def folder(self) -> str:
        return folder_name(self.key)


def folder_name(key: SaeKey) -> str:
    """The folder of one SAE in an export, and its `sae_id` on the hub: the name of its checkpoint."""
    return checkpoint_path(Path(), key).stem


def model_card(saes: Sequence[Listed], library: Library, repository: str) -> str:
    """The card in Markdown, with the hub's header."""
    first = saes[0]
    origin = first.origin
    model = origin.model or "a model whose name the results do not record"
    finding = (
        f"{len(saes)} sparse autoencoders of the residual stream of {model} while it reasons in continuous thoughts"
        + (f", trained on the questions of {origin.dataset}" if origin.dataset else "")
        + f". Made for {library.title} {library.release}."
    )
    positions = (
        "A *position* counts forward passes, not tokens of the question: position 0 is the "
        f"{origin.position_0 or 'bot token after the question'}, position p > 0 the p-th continuous thought, whose "
        "input is the last hidden state of the position before. Layer l is the stream after block l; the last layer is "
        "after the model's final norm. An SAE is of one layer at one position."
    )
    mirrored = any(listed.variant == "abstopk" for listed in saes) and "mirrored" in library.equivalents["abstopk"]
    blocks = [
        header(library, origin.model),
        section(f"# Sparse autoencoders of {model}", finding),
        section("## Where an SAE is", positions),
        section("## Use", f"```python\n{library.usage(repository, first.folder)}\n```"),
        *([MIRRORED.format(title=library.title)] if mirrored else []),
        section("## Recipe", recipe([listed.config for listed in saes])),
        section("## The SAEs", "Measured on held-out questions.", measured(saes)),
        "fvu is the fraction of variance unexplained around the mean row: 0 is perfect, 1 as good as predicting the "
        "mean. explained_variance is the original experiment's, which counts the offsets between dimensions as "
        "variance. L0 is the mean number of latents that are not zero.",
    ]
    return "\n\n".join(blocks) + "\n"


def header(library: Library, model: str | None) -> str:
    """The hub's metadata. A model is named there only if it is one of the hub's."""
    lines = ["---", "tags:", "- sparse-autoencoder", "- continuous-thoughts", f"- {library.tag}"]
    if library.name == "saelens":
        lines.append("library_name: saelens")
    if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.endswith(".gguf"):
        lines.append(f"base_model: {json.dumps(model)}")
    return "\n".join([*lines, "---"])


def recipe(configs: Sequence[Mapping[str, Any]]) -> str:
    """How the SAEs were trained, as a table."""
    names = dict.fromkeys(
        name
        for config in configs
        for name, value in config.items()
        if name not in OF_ONE_SAE and isinstance(value, str | int | float) and name != "activations"
    )
    if not names:
        return "The checkpoints do not record it."
    rows = []
    for name in names:
        values = dict.fromkeys(str(config.get(name, "not recorded")) for config in configs)
        rows.append([name, ", ".join(values)])
    return table(["setting", "value"], rows, words=2)


def measured(saes: Sequence[Listed]) -> str:
    """A line for each SAE."""
    rows = [
        [
            f"`{listed.folder}`",
            listed.variant,
            *map(str, listed.key.values),
            number(listed.metrics.get("fvu")),
            number(listed.metrics.get("explained_variance")),
            number(listed.metrics.get("l0_mean"), ".1f"),
            percent(listed.metrics.get("feature_death_rate")),
        ]
        for listed in saes
    ]
    return table(["folder", "variant", *AXES, "fvu", "explained_variance", "L0", "dead features"], rows, words=2)
