"""Plots of a model's routing: signatures, image against text tokens, working sets and hit rates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expertflow_jax.files import make_folder
from expertflow_jax.harness.document import Picture
from expertflow_jax.harness.figures import write_figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"
Measures = Mapping[str, Any]


def draw_similarity(measures: Measures, name: str, folder: Path) -> Picture:
    """Similarities within and across labels, and what each layer tells."""

    def draw(left: Axes, right: Axes) -> None:
        bins = np.array(measures["bins"])
        for key, colour in (("within", _BLUE), ("across", _ORANGE)):
            left.stairs(measures[key], bins, fill=True, alpha=0.5, color=colour, label=f"{key} kinds")
        left.set_xlabel("cosine similarity of two prompts' signatures")
        left.set_ylabel("density of pairs")
        left.legend(frameon=False)
        layers = np.arange(len(measures["layers"]))
        accuracy = [100 * layer["accuracy"]["mean"] for layer in measures["layers"]]
        spread = [100 * layer["accuracy"]["std"] for layer in measures["layers"]]
        right.errorbar(layers, accuracy, spread, color=_BLUE, marker="o", capsize=3, label="routes of one layer")
        lines = (
            ("routes of all layers", measures["routes"]["accuracy"]["mean"], "-", _BLUE),
            ("words of the prompt", measures["words"]["accuracy"]["mean"], (0, (4, 6)), _ORANGE),
            ("drawn by load", measures["by_load"]["accuracy"]["mean"], ":", _GREY),
            ("most frequent kind", measures["most_frequent"], "-.", _GREY),
        )
        for label, value, style, colour in lines:
            right.axhline(100 * value, linestyle=style, color=colour, linewidth=2, label=label)
        right.set_xlabel("MoE layer")
        right.set_xticks(layers if len(layers) <= 16 else layers[:: len(layers) // 8])
        right.set_ylabel("kind told by logistic regression, %")
        right.set_ylim(0, 105)
        right.legend(frameon=False, fontsize=8)

    text = (
        "Left: how alike two prompts use the experts. Right: how well their routes tell the kind of a prompt, by layer."
    )
    return _picture(draw, folder / f"similarity_{name}.png", text)


def draw_modality(measures: Measures, folder: Path) -> Picture:
    """Experts that as many image and text tokens use, and how far the kinds are apart."""

    def draw(left: Axes, right: Axes) -> None:
        layers = np.arange(len(measures["image_distinct"]))
        for place, (kind, colour) in enumerate((("image", _BLUE), ("text", _ORANGE))):
            left.bar(
                layers + 0.4 * place - 0.2, measures[f"{kind}_distinct"], 0.4, color=colour, label=f"{kind} tokens"
            )
        left.set_xlabel("MoE layer")
        left.set_ylabel("experts used by a prompt's tokens")
        left.margins(y=0.2)
        left.legend(frameon=False, ncols=2, loc="upper center")
        right.plot(layers, measures["divergence"], color=_BLUE, marker="o", label="image against text")
        right.plot(layers, measures["divergence_random"], ":", color=_GREY, label="random kinds, 95th percentile")
        right.set_xlabel("MoE layer")
        right.set_ylabel("Jensen-Shannon divergence, bits")
        right.set_ylim(0, 1)
        right.legend(frameon=False)

    text = "Left: distinct experts of as many image as text tokens of a prompt. Right: how far apart the two uses are."
    return _picture(draw, folder / "modality.png", text)


def draw_reuse(measures: Measures, folder: Path) -> Picture:
    """Hit rates over cache sizes, foretold and replayed, and working sets over windows."""

    def draw(left: Axes, right: Axes) -> None:
        curves = np.array(measures["foretold_by_layer"])  # [L, E - 1]
        sizes = np.arange(1, curves.shape[1] + 1)
        for layer, curve in enumerate(curves):
            left.plot(
                sizes, curve, color=_BLUE, alpha=0.35, linewidth=1, label="of a layer, foretold" if not layer else None
            )
        rates = measures["hit_rates"]
        left.plot(
            [rate["size"] for rate in rates],
            [rate["replayed"] for rate in rates],
            "o",
            color=_ORANGE,
            label="cache_moe, replayed",
        )
        left.set_xlabel("experts per layer in slots")
        left.set_ylabel("hit rate")
        left.set_ylim(0, 1)
        left.legend(frameon=False)
        windows = {int(window): mean for window, mean in measures["working_sets"].items()}
        middle = [np.mean(mean) for mean in windows.values()]
        right.plot(list(windows), middle, color=_BLUE, marker="o", label="mean of the layers")
        right.fill_between(
            list(windows),
            [min(mean) for mean in windows.values()],
            [max(mean) for mean in windows.values()],
            color=_BLUE,
            alpha=0.2,
            label="least to most",
        )
        right.set_xscale("log", base=2)
        right.set_xticks(list(windows), [str(window) for window in windows])
        right.set_ylim(bottom=0)
        right.set_xlabel("steps on end")
        right.set_ylabel("distinct experts of a layer")
        right.legend(frameon=False)

    text = (
        "Left: hit rates that reuse distances foretell for a least-recently-used cache per layer, and the engine's. "
        "Right: how many experts of a layer are used within so many steps."
    )
    return _picture(draw, folder / "reuse.png", text)


def _picture(draw: Callable[[Axes, Axes], None], path: Path, text: str) -> Picture:
    make_folder(path.parent)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, right)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_figure(figure, path)
    return Picture(path, text)
