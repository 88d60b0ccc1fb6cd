"""What a report's numbers do not show: a line each, drawn from the Findings and from where the rows come from."""

from thought_saes.analysis.findings import Findings
from thought_saes.analysis.study import ERROR, EV, has
from thought_saes.common.text import count, of
from thought_saes.reporting.origin import Origin, setting


def limits(findings: Findings, origin: Origin) -> list[str]:
    study = findings.study
    saes, metadata = study.saes, study.grid.metadata
    points = [
        f"**One model, one data set**: {origin.model or 'not recorded'} on {origin.dataset or 'not recorded'}, "
        f"{setting(metadata, 'n_train', ',')} rows.",
    ]
    if origin.thought_projection is False or study.grid.position_0 == "last question token":
        points.append(
            "**Untrained thoughts**, as far as is recorded: the last hidden state is fed back as it is. Unless the "
            "model was trained for that (as Coconut trains), what later positions hold says nothing about reasoning."
        )
    if study.n_seeds < 2:
        points.append("**One seed**: no error bars; no difference here is known to be larger than chance.")
    else:
        points.append(
            f"**{study.n_seeds} seeds** vary the initial weights and the order of the batches only; the split of the "
            "data, the questions and the model are the same."
        )
    collapsed, able = findings.collapsed
    if collapsed:
        mixed = "SAEs fire nearly the same features on every row; means over all SAEs mix them in."
        points.append(f"**Collapse**: {of(collapsed, able)} {mixed}")
    if off_k := [at for at in findings.at if at.off_k]:
        by_k = "; ".join(f"k {at.k}: {of(at.off_k, at.saes)}, {at.l0_off:+.0%} on average" for at in off_k)
        points.append(
            "**L0 off k**: on validation rows some SAEs hold more or fewer latents than k by over 5 %, though k on "
            f"training rows, so their {study.error} is that of another sparsity ({by_k})."
        )
    if not study.has_fvu:
        points.append(f"**No fvu**: {EV} cannot tell a good SAE from a constant prediction.")
    if not has(saes, "mean_explained_variance"):
        points.append("**No baselines**: the floor of EV, PCA and untrained SAEs are not compared.")
    if study.grid.missing:
        points.append(f"**Incomplete**: {len(study.grid.missing):,} SAEs are missing.")
    if unknown := int(saes[ERROR].isna().sum()):
        points.append(f"**Not finite**: {count(unknown, 'SAE')} without a finite {study.error} are in no mean of it.")
    points.append(
        "**The last layer of a model is taken after its final norm**; its loss is on another scale, its fvu is not."
    )
    return points
