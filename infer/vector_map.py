"""Pictures of sentence vectors: each layer's points in a plane, coloured by language or by topic.

    pca     the two directions in which the vectors differ most: distances in the picture are real, as far as they go
    tsne    t-SNE, which keeps neighbours and gives up distances: groups are groups, but how large they are and how far
            apart says nothing

Vectors are scaled to length 1 first. Perplexity, learning rate, steps and seed of t-SNE are those of PIXEL-M4's
analysis (specs/pixel.md, section 7). t-SNE is written out in full, every point with every other: exact, in time and
memory of N^2. Source: van der Maaten and Hinton, Journal of Machine Learning Research 9, 2008.

A picture persuades whatever is in it. So each is given with a number, measured in the vectors and not in the plane: of
the nearest neighbours of a point, the share with its own colour, beside that of a random order.
"""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelcore.durable import write_file
from pixelcore.errors import UserError

METHODS = ("tsne", "pca")
MOST_POINTS = 2000  # of t-SNE
NEIGHBOURS = 10

_PERPLEXITY = 50.0
_LEARNING_RATE = 500.0
_STEPS = 1000
_EARLY_STEPS = 250  # attraction is exaggerated so long, so that groups find together before they push others away
_EXAGGERATION = 12.0
_LEAST = 1e-12


def unit(vectors_ND: NDArray[Any]) -> NDArray[np.float64]:
    """Vectors scaled to length 1."""
    vectors_ND = vectors_ND.astype(np.float64)
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), _LEAST)


def pca(vectors_ND: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 2]: the coordinates along the two directions of largest variance; the largest coordinate of each direction is
    positive, which makes the picture one of two mirror images."""
    centred_ND = vectors_ND - vectors_ND.mean(0)
    _, _, directions_KD = np.linalg.svd(centred_ND, full_matrices=False)
    directions_2D = directions_KD[:2]
    largest_2 = np.abs(directions_2D).argmax(1)
    signs_2 = np.where(directions_2D[np.arange(len(directions_2D)), largest_2] < 0, -1.0, 1.0)
    return centred_ND @ (directions_2D * signs_2[:, None]).T


def tsne(vectors_ND: NDArray[Any], *, seed: int = 42, steps: int = _STEPS) -> NDArray[np.float64]:
    """[N, 2]: points whose neighbours are those of the vectors. Of few vectors the perplexity is a third: nobody has as
    many neighbours as there are vectors."""
    size = len(vectors_ND)
    shared_NN = _neighbourhood(vectors_ND, min(_PERPLEXITY, (size - 1) / 3))
    rate = min(_LEARNING_RATE, size / 4)  # few points, at the rate for thousands, are thrown out of the picture
    points_N2 = 1e-4 * np.random.default_rng(seed).standard_normal((size, 2))
    velocity_N2, gain_N2 = np.zeros((size, 2)), np.ones((size, 2))
    for step in range(steps):
        early = step < _EARLY_STEPS
        # Student's t with one degree of freedom: in the plane, moderate distances may become large ones
        near_NN = 1 / (1 + _squared_distances(points_N2))
        np.fill_diagonal(near_NN, 0.0)
        drawn_NN = np.maximum(near_NN / near_NN.sum(), _LEAST)
        pull_NN = (shared_NN * (_EXAGGERATION if early else 1.0) - drawn_NN) * near_NN
        gradient_N2 = 4 * (pull_NN.sum(1)[:, None] * points_N2 - pull_NN @ points_N2)
        # a coordinate that goes on in its direction takes larger steps, one that turns back smaller ones
        onward_N2 = gradient_N2 * velocity_N2 < 0
        gain_N2 = np.maximum(np.where(onward_N2, gain_N2 + 0.2, gain_N2 * 0.8), 0.01)
        velocity_N2 = (0.5 if early else 0.8) * velocity_N2 - rate * gain_N2 * gradient_N2
        points_N2 = points_N2 + velocity_N2
    return points_N2 - points_N2.mean(0)


def _neighbourhood(vectors_ND: NDArray[Any], perplexity: float) -> NDArray[np.float64]:
    """[N, N], sum 1: how much two vectors are neighbours. Each looks at the others through a Gaussian so wide that it
    sees `perplexity` of them, measured by entropy."""
    distance_NN = _squared_distances(vectors_ND)
    size = len(distance_NN)
    np.fill_diagonal(distance_NN, np.inf)
    nearest_N1 = distance_NN.min(1, keepdims=True)
    away_NN = distance_NN - nearest_N1  # the nearest has weight 1, so no row of weights underflows as a whole
    narrow_N1 = np.ones((size, 1)) / max(float(np.median(away_NN[np.isfinite(away_NN)])), _LEAST)
    low_N1, high_N1 = np.zeros((size, 1)), np.full((size, 1), np.inf)
    finite_NN = np.where(np.isfinite(away_NN), away_NN, 0.0)
    weight_NN = np.zeros((size, size))
    for _ in range(64):
        weight_NN = np.exp(-away_NN * narrow_N1)
        total_N1 = weight_NN.sum(1, keepdims=True)
        entropy_N1 = np.log(total_N1) + narrow_N1 * (weight_NN * finite_NN).sum(1, keepdims=True) / total_N1
        too_wide_N1 = entropy_N1 > np.log(perplexity)
        low_N1, high_N1 = np.where(too_wide_N1, narrow_N1, low_N1), np.where(too_wide_N1, high_N1, narrow_N1)
        narrow_N1 = np.where(np.isinf(high_N1), narrow_N1 * 2, (low_N1 + np.minimum(high_N1, 1e300)) / 2)
    given_NN = weight_NN / weight_NN.sum(1, keepdims=True)
    return np.maximum((given_NN + given_NN.T) / (2 * size), _LEAST)


def _squared_distances(points_ND: NDArray[Any]) -> NDArray[np.float64]:
    square_N = (points_ND**2).sum(1)
    return np.maximum(square_N[:, None] + square_N - 2 * points_ND @ points_ND.T, 0.0)


# ------------------------------------------------------------------ a number and a picture


def neighbours_alike(vectors_ND: NDArray[Any], names: Sequence[str]) -> tuple[float, float]:
    """Of the nearest neighbours by cosine, the share with the same name, and that of neighbours at random."""
    similarity_NN = unit(vectors_ND) @ unit(vectors_ND).T
    np.fill_diagonal(similarity_NN, -np.inf)
    known, number_N = np.unique(np.array(names), return_inverse=True)
    count = min(NEIGHBOURS, len(names) - 1)
    nearest_NK = np.argpartition(-similarity_NN, count - 1, axis=1)[:, :count]
    sizes = np.bincount(number_N, minlength=len(known))
    random = float((sizes * (sizes - 1)).sum() / (len(names) * (len(names) - 1)))
    return float((number_N[nearest_NK] == number_N[:, None]).mean()), random


def check_drawing(path: str) -> None:
    """Raises UserError where the picture could not be drawn, before the work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"--out {path}: drawing needs matplotlib: pip install 'pixelcore[plot]'")


def draw_map(
    path: str, layers: Sequence[tuple[int, NDArray[Any], float]], names: Sequence[str], heading: str, random: float
) -> None:
    """A PNG with a panel for each layer. layers: its number, points [N, 2], share of neighbours alike. names: of each
    point, its colour. random: the share of neighbours alike at random. Raises UserError if it cannot be written."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # the extra `plot`; no window and no global state

    known = sorted(set(names))
    name_N = np.array(names)
    columns = min(len(layers), 4)
    lines = -(-len(layers) // columns)
    figure = Figure(figsize=(3.6 * columns + 2, 3.6 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    palette = colormaps["tab10" if len(known) <= 10 else "tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for panel in panels:
        panel.set_axis_off()
    for panel, (number, points_N2, share) in zip(panels, layers):
        panel.set_axis_on()
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(f"layer {number}: neighbours alike {100 * share:.0f} %", fontsize=9)
        for place, name in enumerate(known):
            own_M2 = points_N2[name_N == name]
            marker = "o^s*"[place // len(palette) % 4]
            panel.scatter(*own_M2.T, s=6, color=palette[place % len(palette)], marker=marker, label=name, linewidths=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, markerscale=2)
    figure.suptitle(f"{heading}; at random {100 * random:.0f} %", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    try:
        write_file(Path(path), content.getvalue())
    except OSError as cause:
        raise UserError(f"--out {path}: cannot be written ({cause.strerror}): choose another place") from cause
