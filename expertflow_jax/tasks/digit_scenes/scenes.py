"""Scenes: handwritten digit scans, coloured and placed on a 3x3 grid of 16-pixel cells.

A scene draws from few colours and few digits (its theme), as photographs show few kinds of things; questions about
it then differ in what they need. Train and test scans never mix. Everything is a pure function of a NumPy generator.
Axes: B scenes, 9 cells in reading order.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import sklearn.datasets
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

GRID = 3
CELLS = GRID * GRID
CELL_PIXELS = 16
IMAGE_PIXELS = GRID * CELL_PIXELS
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
POSITIONS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (70, 90, 255),
    "yellow": (240, 230, 50),
    "orange": (255, 140, 20),
    "purple": (170, 50, 220),
    "cyan": (50, 220, 230),
    "white": (245, 245, 245),
}
COLOR_NAMES = tuple(COLORS)
BLANK = -1
SPLIT_SEED = 2026  # which scans are held out
HELD_OUT_SCANS = 360
VARIANTS = 24  # distorted copies of each training scan


@dataclasses.dataclass(frozen=True)
class Scene:
    """What one image shows.

    Attributes:
      digits: nine digits in reading order, BLANK where a cell is empty.
      colors: nine indices into COLOR_NAMES, BLANK where a cell is empty.
    """

    digits: tuple[int, ...]
    colors: tuple[int, ...]

    @property
    def filled(self) -> list[int]:
        """Cells with a digit."""
        return [cell for cell in range(CELLS) if self.digits[cell] != BLANK]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Two or three colours, four or five kinds of digits, five to nine cells filled."""
    colors = rng.choice(len(COLOR_NAMES), size=rng.integers(2, 4), replace=False)
    digits = rng.choice(10, size=rng.integers(4, 6), replace=False)
    filled = np.zeros(CELLS, bool)
    filled[rng.choice(CELLS, size=rng.integers(5, CELLS + 1), replace=False)] = True
    shown = np.where(filled, rng.choice(digits, size=CELLS), BLANK)
    painted = np.where(filled, rng.choice(colors, size=CELLS), BLANK)
    return Scene(tuple(int(d) for d in shown), tuple(int(c) for c in painted))


def scans_file() -> Path:
    """The file of scikit-learn's that holds all scans."""
    return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"


@functools.cache
def scan_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scans of "train" or "val": (uint8 [n, 8, 8] of 0..255, digit int [n]). Stratified by digit, disjoint."""
    images, digits = load_digits(return_X_y=True)
    train, val = train_test_split(
        np.arange(len(digits)), test_size=HELD_OUT_SCANS, random_state=SPLIT_SEED, stratify=digits
    )
    chosen = {"train": train, "val": val}[split]
    return (images[chosen].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), digits[chosen].astype(int)


@dataclasses.dataclass(frozen=True)
class ScanBank:
    """Scans ready to be painted: uint8 intensities [n, CELL_PIXELS, CELL_PIXELS] and, per digit, their row numbers."""

    scans: np.ndarray
    of_digit: tuple[np.ndarray, ...]


@functools.cache
def scan_bank(split: str, augment: bool) -> ScanBank:
    """The split's scans enlarged to a cell; with `augment`, VARIANTS distorted copies of each (a few seconds)."""
    scans, digits = scan_split(split)
    if augment:
        rng = np.random.default_rng([SPLIT_SEED, 1])
        large = np.concatenate([[_distort(scan, rng) for scan in scans] for _ in range(VARIANTS)])
        digits = np.tile(digits, VARIANTS)
    else:
        large = np.stack([_enlarge(scan, np.eye(2), np.zeros(2)) for scan in scans])
    return ScanBank(large, tuple(np.flatnonzero(digits == d) for d in range(10)))


def _distort(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = np.deg2rad(rng.uniform(-14, 14))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.uniform(-0.2, 0.2)], [0, 1]])
    matrix = rotation @ shear @ np.diag(1 / rng.uniform(0.85, 1.1, size=2))
    large = _enlarge(scan, matrix, rng.uniform(-0.6, 0.6, size=2))
    return (255 * (large / 255.0) ** rng.uniform(0.7, 1.4)).astype(np.uint8)


def _enlarge(scan: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Bilinear, with `matrix` about the centre and a shift in scan pixels."""
    matrix = matrix * (8 / CELL_PIXELS)
    offset = np.full(2, 3.5) - matrix @ np.full(2, (CELL_PIXELS - 1) / 2) + shift
    large = ndimage.affine_transform(scan.astype(np.float32), matrix, offset, output_shape=(CELL_PIXELS,) * 2, order=1)
    return np.clip(large, 0, 255).astype(np.uint8)


def render(scenes: list[Scene], bank: ScanBank, rng: np.random.Generator) -> np.ndarray:
    """Paints scenes with scans of the bank on a dark, slightly noisy ground: uint8 [B, 48, 48, 3]."""
    digits = np.array([scene.digits for scene in scenes])  # [B, 9]
    colors = np.array([scene.colors for scene in scenes])
    draw = rng.random(digits.shape)
    rows = np.zeros(digits.shape, int)
    for digit, of_digit in enumerate(bank.of_digit):
        here = digits == digit
        rows[here] = of_digit[(draw[here] * len(of_digit)).astype(int)]
    ink = bank.scans[rows] * (digits != BLANK)[..., None, None].astype(np.uint8)  # [B, 9, 16, 16]
    paint = np.array(list(COLORS.values()), np.float32)[np.maximum(colors, 0)]  # [B, 9, 3]
    ground = rng.integers(0, 40, size=(len(scenes), 1, 1, 1, 1)).astype(np.float32)
    cells = ground + (paint[:, :, None, None, :] - ground) * (ink[..., None] / np.float32(255))
    cells = cells.reshape(-1, GRID, GRID, CELL_PIXELS, CELL_PIXELS, 3).transpose(0, 1, 3, 2, 4, 5)
    image = cells.reshape(len(scenes), IMAGE_PIXELS, IMAGE_PIXELS, 3)
    image = image + rng.integers(-8, 9, size=image.shape, dtype=np.int8)
    return np.clip(image, 0, 255).astype(np.uint8)
