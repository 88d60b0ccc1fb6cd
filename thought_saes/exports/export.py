"""Write SAEs of a results folder for another library, and upload them."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from thought_saes.common.files import only_writer, write_bytes
from thought_saes.common.text import without_path
from thought_saes.exports.card import Listed, folder_name, model_card
from thought_saes.exports.library import Exported, Library, Origin
from thought_saes.exports.weights import Weights
from thought_saes.results.names import SaeKey
from thought_saes.results.store import Results

CARD = "README.md"


def read_origin(results: Path, key: SaeKey) -> Origin:
    """What the folder says of where an SAE comes from. Raises InputError if one of its files is damaged."""
    there = Results(results)
    about, metrics = there.plan(), there.metrics(key.cell, key.latent_dim)
    position_0 = metrics.metadata.get("position_0") if metrics else None
    return Origin(without_path(about.get("model")), without_path(about.get("dataset")), position_0)


def load(results: Path, key: SaeKey) -> Exported:
    """One SAE of the folder. Raises InputError if its checkpoint is damaged, or is not of what its name says."""
    sae = Results(results).sae(key)
    return Exported(key, Weights.of(sae), sae.config, sae.metrics, read_origin(results, key))


def write_sae(sae: Exported, library: Library, folder: Path) -> list[str]:
    """Write the files of one SAE, the config last, and return their names. Raises what `Library.files` does."""
    files = library.files(sae)
    folder.mkdir(parents=True, exist_ok=True)
    *_, config = files
    (folder / config).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return list(files)


def export(results: Path, keys: Sequence[SaeKey], library: Library, output: Path, repository: str) -> list[str]:
    """Write a folder for each SAE and the model card; return the names of all files, relative to `output`.

    A folder is whole when its last file, the config, is there. Raises InputError if a checkpoint is damaged or the
    library has nothing that computes what an SAE does.
    """
    listed: list[Listed] = []
    names: list[str] = []
    with only_writer(output):
        for key in tqdm(keys, unit="SAE", desc=f"writing for {library.title}"):
            sae = load(results, key)
            names += [f"{folder_name(key)}/{name}" for name in write_sae(sae, library, output / folder_name(key))]
            listed.append(Listed(sae))
        write_bytes(output / CARD, model_card(listed, library, repository).encode())
    return [*names, CARD]
