"""Write trained SAEs for another library: SAELens, sparsify or dictionary_learning.

    python export_saes.py --results results/ --format saelens --layers 3,7 --positions 0-5 --output exported/

Each SAE goes to `OUTPUT/pos{p}_layer{l}_d{latent_dim}_k{k}/` in the files of the library, beside a model card. The
folder is laid out as a repository of the hub: `--push ORG/REPO` uploads it. What is written computes the same latents
and reconstructions as the SAE (docs/exports.md says by which class); where a library has no such class, nothing is
written. Deliberately missing: the way back, which is `load_sae(folder)` for a SAELens folder.
"""

from dataclasses import dataclass
from pathlib import Path

from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.flags import Selection, option, parse_config
from thought_saes.common.text import count
from thought_saes.exports.export import export
from thought_saes.exports.hub import push
from thought_saes.exports.libraries import LIBRARIES
from thought_saes.results.names import SaeKey, checkpoint_keys

EVERYTHING = Selection.parse("all")


@dataclass(frozen=True)
class ExportConfig:
    format: str = option(help="the library to write for", choices=tuple(LIBRARIES))
    output: Path = option(help="folder to write into")
    results: Path = option(Path("results"), help="folder with the SAEs' checkpoints")
    layers: Selection = option(EVERYTHING, help="which layers: all, 3, 0-5 or 0,7,14")
    positions: Selection = option(EVERYTHING, help="which positions")
    latent_dims: tuple[int, ...] = option((), help="which latent_dims; all if not given")
    k_values: tuple[int, ...] = option((), help="which k; all if not given")
    push: str | None = option(None, help="ORG/REPO on the Hugging Face hub to upload to")

    def __post_init__(self) -> None:
        if self.push is not None and self.push.count("/") != 1:
            raise InputError(f"--push {self.push} is no name of a repository: write ORG/REPO")
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"--output {self.output} is not a folder")


def chosen(config: ExportConfig) -> list[SaeKey]:
    """The SAEs that the flags name. Raises InputError if there is none, or one of the values is not there."""
    there = checkpoint_keys(config.results)
    if not there:
        raise InputError(f"no checkpoints in {config.results}: no file named pos<p>_layer<l>_d<latent_dim>_k<k>.pt")
    layers, positions, latent_dims, k_values = (
        sorted(set(values)) for values in zip(*(key.values for key in there), strict=True)
    )
    wanted_layers = config.layers.resolve(layers, f"layers in {config.results}")
    wanted_positions = config.positions.resolve(positions, f"positions in {config.results}")
    for flag, wanted, values in (
        ("latent-dims", config.latent_dims, latent_dims),
        ("k-values", config.k_values, k_values),
    ):
        if absent := sorted(set(wanted) - set(values)):
            raise InputError(f"--{flag}: {config.results} has no {absent[0]}; there are {', '.join(map(str, values))}")
    keys = [
        key
        for key in there
        if key.cell.layer in wanted_layers
        and key.cell.position in wanted_positions
        and key.latent_dim in (config.latent_dims or latent_dims)
        and key.k in (config.k_values or k_values)
    ]
    if not keys:
        raise InputError(f"{config.results} holds no checkpoint of all that was chosen at once")
    return keys


def main() -> int:
    config = parse_config(ExportConfig, __doc__ or "")
    keys = chosen(config)
    repository = config.push or "ORG/REPO"
    names = export(config.results, keys, LIBRARIES[config.format], config.output, repository)
    print(f"{count(len(keys), 'SAE')} for {LIBRARIES[config.format].title} in {config.output}")
    if config.push:
        print(f"uploaded to {push(config.output, names, config.push)}")
    return 0


if __name__ == "__main__":
    run(main)
