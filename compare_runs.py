"""Compare runs over the same grid: any number of recipes, or two sets of seeds.

    python compare_runs.py --recipes results/published results/improved --output comparison.md --figure comparison.png
    python compare_runs.py --results fused/seed0 fused/seed1 fused/seed2 --against plain/seed0 plain/seed1 plain/seed2

--recipes: each folder is a recipe; it holds metrics (one seed) or folders that do (several). By k: fvu relative to PCA,
dead, collapsed and alive features, validation over training rows, seconds; cells won; the difference with the first
recipe, paired by configuration, with its interval; where interpret_features.py was run on them, coverage of concepts.

--results with --against: for every configuration and metric, mean ± standard deviation over the seeds of both sets,
and the difference of the means in units of the seeds' spread, the root of the sum of both variances: at most 1 is
within it.

--tried: a search for recipes, single SAEs: what each recipe gains over one, paired, and fvu against dead features.

    python compare_runs.py --tried results/recipes/tried.jsonl --figure results/recipes/tried.png

SAEs that not all have are left out. Prints Markdown; `--output` writes it to a file.
"""

from dataclasses import dataclass
from pathlib import Path

from thought_saes.analysis.covered import covered, read_coverages
from thought_saes.analysis.recipes import read_recipes
from thought_saes.analysis.tried import read_tried
from thought_saes.common.command_line import run
from thought_saes.common.errors import InputError
from thought_saes.common.files import write_bytes
from thought_saes.common.flags import option, parse_config
from thought_saes.reporting.comparison import compare
from thought_saes.reporting.seed_by_seed import against
from thought_saes.reporting.tried import describe_tried


@dataclass(frozen=True)
class CompareConfig:
    """The flags of this script."""

    recipes: tuple[Path, ...] | None = option(None, help="folders of recipes, two at least, the first the reference")
    results: tuple[Path, ...] | None = option(None, help="folders of the first set, each of another seed, two at least")
    against: tuple[Path, ...] | None = option(None, help="folders of the second set")
    output: Path | None = option(None, help="Markdown file to write")
    tried: Path | None = option(None, help="file of single SAEs of a search, a line of JSON each")
    base: str = option("improved", help="the recipe that others are held against, with --tried")
    figure: Path | None = option(None, help="PNG to write, with --recipes or --tried")

    def __post_init__(self) -> None:
        if self.tried:
            if self.recipes or self.results or self.against:
                raise InputError("--tried stands alone, without --recipes, --results and --against")
        elif self.recipes is None:
            for name in ("results", "against"):
                if getattr(self, name) is None:
                    raise InputError(f"--{name} is missing: give --results and --against, or --recipes")
                if len(getattr(self, name)) < 2:
                    raise InputError(f"--{name} needs two folders at least: one seed has no spread")
            if self.figure:
                raise InputError("--figure is for --recipes and --tried")
        elif self.results or self.against:
            raise InputError("--recipes stands alone, without --results and --against")
        elif len(self.recipes) < 2:
            raise InputError("--recipes needs two folders at least")


def main() -> int:
    config = parse_config(CompareConfig, __doc__ or "")
    if config.tried:
        table = read_tried(config.tried)
        text = describe_tried(table, config.base)
        if config.figure:
            from thought_saes.figures.style import png
            from thought_saes.figures.tried import tried

            write_bytes(config.figure, png(tried(table), config.tried.name))
    elif config.recipes:
        recipes = read_recipes(config.recipes)
        text = compare(recipes, covered(read_coverages(config.recipes)))
        if config.figure:
            from thought_saes.figures.recipes import compare as draw  # matplotlib, which few runs need
            from thought_saes.figures.style import png

            write_bytes(config.figure, png(draw(recipes), " against ".join(recipes)))
    else:
        assert config.results
        assert config.against
        text = against(config.results, config.against)
    if config.output:
        write_bytes(config.output, (text + "\n").encode())
    print(text)
    return 0


if __name__ == "__main__":
    run(main)
