"""Every figure of a preset as files, each with the data that made it: what `figures/` holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rebasin_utils import figures, maps, tables, toy_figures
from rebasin_utils.study import Study
from rebasin_utils.style import save


def draw_all(studies: Sequence[Study], folder: Path) -> None:
    """Write the figures of notebook 01 and of every study, as far as it has what they show."""
    toy_figures.save_all(folder)
    for study in studies:
        _draw(study, folder)
    middles = pd.concat([tables.midpoints(study) for study in studies], ignore_index=True)
    for model, rows in middles.groupby("model"):
        if rows["width"].nunique() > 1:
            save(maps.midpoint_by_width(rows), folder, f"{model}-midpoint-by-width", rows)
            same = [study for study in studies if study.settings.model == model]
            cell = next((s.settings.cell for s in same if s.settings.looks_closer), None)
            if cell:
                gaps = tables.gaps_by_width(same, *cell)
                save(maps.gaps_by_width(gaps), folder, f"{model}-gaps-by-width", gaps)


def _draw(study: Study, folder: Path) -> None:
    s, name = study.settings, study.settings.name
    path, variances = tables.paths(study), tables.variances(study)
    save(figures.paths(path, repaired=True), folder, f"{name}-paths", path)
    save(maps.variance_collapse(variances), folder, f"{name}-variances", variances)
    if not s.sparsities or not s.methods:
        return
    segments = tables.segments(study)
    save(maps.barrier_by_sparsity(segments), folder, f"{name}-segments", segments)
    if len(s.rewind_epochs) > 1:
        table = study.results().drop(columns=["seconds", "device", "artifact"])
        save(figures.accuracy_by_rewind(table), folder, f"{name}-accuracy", table)
        save(figures.gain_by_rewind(table), folder, f"{name}-gain", table)
        rounds = tables.rounds(study)
        save(figures.trajectory(rounds), folder, f"{name}-trajectory", rounds)
    if s.tickets_of_b:
        overlaps = tables.overlaps(study)
        save(figures.overlaps(overlaps), folder, f"{name}-overlaps", overlaps)
    if study.plan.nodes("diversity"):
        ensembles = tables.ensembles(study)
        save(maps.ensembles(ensembles), folder, f"{name}-ensembles", ensembles)
        if s.match_epochs:
            early = tables.early_matching(study)
            save(maps.early_matching(early), folder, f"{name}-early-matching", early)
    for node in study.plan.nodes("plane"):
        metrics = study.load(node).record["metrics"]
        table = maps.plane_table(metrics)
        save(maps.plane(metrics), folder, f"{name}-plane", table)
        save(maps.plane_surface(metrics), folder, f"{name}-plane-surface", table)
