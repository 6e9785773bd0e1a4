"""report.md and report.html of a model's routing: the paper's numbers beside ours, modality, reuse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console

from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph
from expertflow_jax.harness.report import attached, plain, write
from expertflow_jax.studies.routing.plots import draw_modality, draw_reuse, draw_similarity

Measures = Mapping[str, Any]
KINDS = {"task": "benchmarks", "group": "question types"}
# OLMoE-1B-7B-0125-Instruct, four task categories (2603.11114).
PAPER = ("2603.11114, OLMoE-1B-7B, 4 tasks", "0.844 ± 0.088", "0.623 ± 0.169", "1.44", "-", "92.5 ± 6.1", "-", "-")


def similarity_grid(similarity: Measures) -> Grid:
    """The paper's four numbers beside those of each labelling, with the baselines."""
    titles = ("prompts", "within", "across", "Cohen's d", "d, permuted (95 %)", "told, %", "by words, %", "guess, %")
    lines = [PAPER]
    for name, measured in similarity.items():
        routes, load = measured["routes"], measured["by_load"]
        head = f"{measured['prompts']} prompts, {len(measured['labels'])} {KINDS[name]}"
        permuted = f"{measured['permuted']['cohens_d_mean']:.2f} ({measured['permuted']['cohens_d_95']:.2f})"
        words, guess = f"{100 * measured['words']['accuracy']['mean']:.1f}", f"{100 * measured['most_frequent']:.1f}"
        lines.append((head, *_pair_figures(routes), permuted, _percent(routes["accuracy"]), words, guess))
        lines.append(("the same, drawn by load", *_pair_figures(load), "-", _percent(load["accuracy"]), "-", "-"))
    return Grid(titles, lines, (False, *[True] * 7))


def _pair_figures(measured: Measures) -> tuple[str, str, str]:
    return (
        f"{measured['within_mean']:.3f} ± {measured['within_std']:.3f}",
        f"{measured['across_mean']:.3f} ± {measured['across_std']:.3f}",
        f"{measured['cohens_d']:.2f}",
    )


def _percent(accuracy: Measures) -> str:
    return f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}"


def layers_grid(measured: Measures) -> Grid:
    """What each layer alone tells."""
    lines = [
        (str(place), f"{layer['cohens_d']:.2f}", _percent(layer["accuracy"]))
        for place, layer in enumerate(measured["layers"])
    ]
    return Grid(("MoE layer", "Cohen's d", "told, %"), lines, (True, True, True))


def modality_grid(measured: Measures) -> Grid:
    """Image against text tokens, layer by layer."""
    titles = (
        *("MoE layer", "entropy, image", "text", "experts used, image", "text", "difference", "p"),
        *("divergence", "random", "image's own, %", "text's own, %"),
    )
    lines = [
        (
            str(layer),
            f"{measured['image_entropy'][layer]:.2f}",
            f"{measured['text_entropy'][layer]:.2f}",
            f"{measured['image_distinct'][layer]:.1f}",
            f"{measured['text_distinct'][layer]:.1f}",
            f"{measured['difference'][layer]:+.1f}",
            f"{measured['difference_p'][layer]:.3f}",
            f"{measured['divergence'][layer]:.2f}",
            f"{measured['divergence_random'][layer]:.2f}",
            f"{100 * measured['image_experts'][layer]:.0f}",
            f"{100 * measured['text_experts'][layer]:.0f}",
        )
        for layer in range(len(measured["image_entropy"]))
    ]
    return Grid(titles, lines, [True] * len(titles))


def reuse_grid(measured: Measures) -> Grid:
    """Hit rates foretold and replayed."""
    lines = [
        (str(rate["size"]), f"{rate['foretold']:.3f}", f"{rate['replayed']:.3f}") for rate in measured["hit_rates"]
    ]
    return Grid(("experts per layer", "foretold", "cache_moe, replayed"), lines, (True, True, True))


def working_set_grid(measured: Measures) -> Grid:
    """Distinct experts over windows of steps."""
    lines = [
        (window, f"{np.mean(mean):.1f}", f"{min(mean):.1f}", f"{max(mean):.1f}")
        for window, mean in measured["working_sets"].items()
    ]
    return Grid(("steps on end", "experts, mean of the layers", "least", "most"), lines, [True] * 4)


def spread_sentence(measured: Measures) -> str:
    """Whether image tokens spread over more experts than text tokens, in words."""
    difference, p = np.array(measured["difference"]), np.array(measured["difference_p"])
    wider, narrower = (int(((p <= 0.05) & (sign * difference > 0)).sum()) for sign in (1, -1))
    return (
        f"As many image as text tokens of a prompt use more experts in {wider} of {len(p)} layers and fewer in "
        f"{narrower} (p <= 0.05 against random kinds): {np.mean(measured['image_distinct']):.1f} against "
        f"{np.mean(measured['text_distinct']):.1f} experts on average."
    )


def write_report(
    workdir: Path, measures: Measures, config: ml_collections.ConfigDict, command: str, console: Console
) -> None:
    """Draws the plots, writes report.md and report.html, and prints the main tables."""
    plots = workdir / "plots"
    grid = similarity_grid(measures["similarity"])
    blocks: list[Block] = [
        Heading(1, f"How {config.model} routes"),
        Code(command),
        Heading(2, "Do prompts of one kind take like routes?"),
        Paragraph(
            "A signature is how often a prompt's tokens use each expert of each layer. **within**, **across**: cosine "
            "similarity of two prompts of one kind, and of two kinds; prompts on one image or question are not "
            "compared. **permuted**: kinds dealt out anew. **told**: accuracy of a logistic regression on signatures "
            "over five folds, an image or question wholly in one. **drawn by load**: every expert drawn by its layer's "
            "load. **by words**: the same regression on the prompt's tokens alone, image placeholders included; "
            "**guess**: the most frequent kind."
        ),
        grid,
    ]
    console.print(plain(grid), highlight=False, soft_wrap=True, markup=False)
    for name, measured in measures["similarity"].items():
        blocks += [
            Heading(3, f"By {KINDS[name]}"),
            draw_similarity(measured, name, plots),
            layers_grid(measured),
        ]
    if (modality := measures["modality"]) is not None:
        sentence = spread_sentence(modality)
        console.print(sentence, highlight=False)
        blocks += [
            Heading(2, "Image against text tokens"),
            Paragraph(sentence),
            Paragraph(
                "**entropy** of the use of the experts, in bits. **divergence**: Jensen and Shannon's between the two "
                "uses, and its 95th percentile for random kinds. **own**: experts that have nine tenths of their load "
                "from one kind, both kinds weighted alike."
            ),
            draw_modality(modality, plots),
            modality_grid(modality),
        ]
    reuse = measures["reuse"]
    rates = reuse_grid(reuse)
    console.print(plain(rates), highlight=False, soft_wrap=True, markup=False)
    blocks += [
        Heading(2, "When is an expert wanted again?"),
        Paragraph(
            f"{reuse['steps']} steps of batches of {reuse['batch_size']}, in the order of the prompts, with answers. "
            "The reuse distance of an expert is the number of other experts of its layer used since: it foretells "
            "whether a cache per layer that evicts the least recent still holds it. The engine's `cache_moe` is "
            "replayed beside that; it starts with experts in its slots, and serves a step that wants more than there "
            "are slots in rounds, so that the two need not agree where slots are few."
        ),
        draw_reuse(reuse, plots),
        rates,
        working_set_grid(reuse),
        *attached(workdir, ("environment.json", "config.json")),
    ]
    write(workdir, blocks)
