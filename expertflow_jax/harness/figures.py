"""Plots as files."""

from pathlib import Path

from matplotlib.figure import Figure

from expertflow_jax.files import whole_file


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all; without a version in it, so that the same rows give the same bytes."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
