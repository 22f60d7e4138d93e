"""Draws the figures of the README: `python picture/draw_figures.py [-out FOLDER]`.

architecture.png is the whole of TRFE-Net, guides.png the ways in which its gland decoder can guide its nodule
decoder. Coordinates are pixels of a page 900 wide, about what a README shows, with y upwards; the files hold
twice as many.
"""
# The labels hold Greek letters and signs of multiplication.
# ruff: noqa: RUF001

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Outline

Point = tuple[float, float]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
GLAND, NODULE, SHARED, INK, PAPER = "#0072B2", "#D55E00", "#5F6B76", "#22282E", "#FFFFFF"
PAGE_WIDTH = 900
SMALL, NORMAL, LARGE = 8.0, 8.8, 10.5  # points; 8 are 11 pixels on the page


# ---- the drawing's vocabulary


def page(height: float) -> Axes:
    """A white page, 900 by `height` pixels, whose data coordinates are those pixels."""
    fig = plt.figure(figsize=(PAGE_WIDTH / 100, height / 100), dpi=200, facecolor=PAPER)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, PAGE_WIDTH), ylim=(0, height))
    ax.axis("off")
    return ax


def tint(colour: str, strength: float) -> tuple[float, ...]:
    """`colour` mixed with white: 1 is the colour itself, 0 is white."""
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


def label(ax: Axes, at: Point, text: str, colour: str = INK, size: float = SMALL, **style: Any) -> None:
    style = {"ha": "center", "va": "center", "linespacing": 1.15} | style
    ax.text(*at, text, color=colour, fontsize=size, **style)


def box(
    ax: Axes, centre: Point, size: Point, text: str = "", colour: str = SHARED, fill: float = 0.0, **style: Any
) -> None:
    """A rounded box with its text in the middle; `fill` is the strength of its colour inside."""
    (x, y), (width, height) = centre, size
    style = {"boxstyle": "round,pad=0,rounding_size=5", "linewidth": 1.1, "zorder": 3} | style
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, edgecolor=colour, facecolor=tint(colour, fill), **style))
    label(ax, centre, text, zorder=4)


def arrow(ax: Axes, points: Sequence[Point], colour: str = SHARED, head: bool = True, **style: Any) -> None:
    """A line through the points, with a head at its end."""
    style = {"linewidth": 1.3, "zorder": 2, "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0} | style
    shape = "-|>,head_length=0.5,head_width=0.25" if head else "-"
    ax.add_patch(FancyArrowPatch(path=Outline(points), arrowstyle=shape, color=colour, joinstyle="round", **style))


def dot(ax: Axes, at: Point, colour: str) -> None:
    """Where a line branches."""
    ax.add_patch(Circle(at, 2.6, color=colour, zorder=3))


def node(ax: Axes, at: Point, text: str) -> None:
    """A sum or a product, as a circle."""
    ax.add_patch(Circle(at, 10, facecolor=PAPER, edgecolor=INK, linewidth=1.4, zorder=3))
    label(ax, at, text, size=LARGE, zorder=4, weight="bold")


# ---- architecture.png


def ellipse(centre: Point, radii: Point, softness: float = 0.02, pixels: int = 128) -> np.ndarray:
    """(pixels, pixels) map, 1 inside the ellipse and 0 outside, in coordinates from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    radius = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
    return 1 / (1 + np.exp(np.clip((radius - 1) / softness, -50, 50)))


def gland_map(softness: float = 0.02) -> np.ndarray:
    """Two lobes and the isthmus between them."""
    parts = (((-0.46, 0.02), (0.34, 0.4)), ((0.46, 0.02), (0.34, 0.4)), ((0, -0.14), (0.55, 0.19)))
    return 1 - np.prod([1 - ellipse(centre, radii, softness) for centre, radii in parts], axis=0)


def nodule_map(softness: float = 0.02) -> np.ndarray:
    return ellipse((0.1, 0.05), (0.42, 0.33), softness)


def ultrasound(tissue: np.ndarray, seed: int) -> np.ndarray:
    """Speckle over the tissue's brightness, fading with depth."""
    speckle = np.random.default_rng(seed).rayleigh(0.8, tissue.shape)
    speckle = np.mean([np.roll(speckle, shift, axis=1) for shift in range(3)], axis=0)
    return np.clip(tissue * speckle * np.linspace(1.1, 0.65, len(tissue))[:, None], 0, 1)


def thumbnail(ax: Axes, centre: Point, image: np.ndarray, colour: str, mapped: bool = True, side: float = 66) -> None:
    """A framed picture: a map from white to `colour`, or (`mapped` off) a grey image."""
    (x, y), half = centre, side / 2
    cmap = LinearSegmentedColormap.from_list("map", [PAPER, colour]) if mapped else "gray"
    extent = (x - half, x + half, y - half, y + half)
    ax.imshow(image, cmap, vmin=0, vmax=1, extent=extent, aspect="auto", zorder=3, interpolation_stage="rgba")
    frame = {"fill": False, "edgecolor": colour, "linewidth": 2, "zorder": 4}
    ax.add_patch(Rectangle((x - half, y - half), side, side, **frame))


MIDDLE, OFFSET = 342, 132  # the encoder's row; how far above and below it the decoders' rows are
BLOCK_WIDTH, HEIGHTS = 39, (100, 84, 68, 54, 42)  # of c1 ... c5
ENCODER_X = (150, 200, 250, 300, 350)
DECODER_X = (706, 615, 524, 433)  # at scales 1, 1/2, 1/4, 1/8, as the encoder's first four
TURN_X, HEAD_X, LOGITS_X, MASK_X = 392, 748, 803, 863
SCALES = ("1", "1/2", "1/4", "1/8", "1/16")
DASHED, DOTTED = (0, (3, 2)), (0, (1, 1.3))


def block(ax: Axes, x: float, y: float, level: int, colour: str) -> None:
    """The double conv of a level (0: full scale), with its width and scale; the finer, the taller."""
    box(ax, (x, y), (BLOCK_WIDTH, HEIGHTS[level]), colour=colour, fill=0.3)
    label(ax, (x, y + 7), str(64 << level), size=NORMAL, weight="bold", zorder=4)
    label(ax, (x, y - 8), SCALES[level], zorder=4)


def draw_inputs(ax: Axes) -> None:
    """The pairs of TATN, each row with one of the two masks."""
    x = 60
    box(ax, (x, MIDDLE), (112, 256), fill=0.05, linewidth=0.8, zorder=1)
    label(ax, (x, MIDDLE + 113), "TATN batch", size=NORMAL, weight="bold")
    trachea = ellipse((0, 0.4), (0.24, 0.3), 0.08)
    gland, nodule = 0.35 + 0.45 * gland_map(0.08) - 0.3 * trachea, 0.7 - 0.5 * nodule_map(0.08)
    thumbnail(ax, (x, MIDDLE + 65), ultrasound(gland, seed=1), GLAND, mapped=False)
    label(ax, (x, MIDDLE + 15), "gland row, TG3K:\nno nodule mask", GLAND)
    thumbnail(ax, (x, MIDDLE - 51), ultrasound(nodule, seed=2), NODULE, mapped=False)
    label(ax, (x, MIDDLE - 101), "nodule row, TN3K:\nno gland mask", NODULE)
    arrow(ax, [(x + 56, MIDDLE), (ENCODER_X[0] - BLOCK_WIDTH / 2, MIDDLE)])


def draw_encoder(ax: Axes) -> None:
    half = BLOCK_WIDTH / 2
    for level, x in enumerate(ENCODER_X):
        block(ax, x, MIDDLE, level, SHARED)
        if level:
            arrow(ax, [(ENCODER_X[level - 1] + half, MIDDLE), (x - half, MIDDLE)])
    label(ax, (x - 4, MIDDLE + 46), "shared\nencoder", SHARED, NORMAL, weight="bold")
    arrow(ax, [(x + half, MIDDLE), (TURN_X, MIDDLE)], head=False)
    dot(ax, (TURN_X, MIDDLE), SHARED)
    box(ax, (x - 4, MIDDLE - 72), (72, 40), "size head,\nTRFE+ only", linestyle=DASHED)
    arrow(ax, [(x, MIDDLE - HEIGHTS[-1] / 2), (x, MIDDLE - 52)], linestyle=DASHED)


def draw_decoder(ax: Axes, task: str, colour: str, side: int) -> None:
    """A decoder with its skips, head, output and loss, above the encoder (`side` 1) or below it (-1)."""
    y, half = MIDDLE + side * OFFSET, BLOCK_WIDTH / 2
    left, right = DECODER_X[-1] - 28, HEAD_X + 19
    box(ax, ((left + right) / 2, y), (right - left, 124), colour=colour, fill=0.07, linewidth=0, zorder=0)
    label(ax, (left + 29, y - side * 45), f"{task}\ndecoder", colour, NORMAL, weight="bold")

    arrow(ax, [(TURN_X, MIDDLE), (TURN_X, y), (DECODER_X[-1] - half, y)], colour)
    for level, (x, from_x) in enumerate(zip(DECODER_X, ENCODER_X[:-1], strict=True)):
        block(ax, x, y, level, colour)
        edge, turn_y = HEIGHTS[level] / 2, MIDDLE + side * (OFFSET + 104 - 11 * level)
        arrow(ax, [(from_x, MIDDLE + side * edge), (from_x, turn_y), (x, turn_y), (x, y + side * edge)])
        if level:
            arrow(ax, [(x + half, y), (DECODER_X[level - 1] - half, y)], colour)

    arrow(ax, [(DECODER_X[0] + half, y), (LOGITS_X - 25, y)], colour)
    box(ax, (HEAD_X, y), (28, 24), "1×1", colour)
    truth = {"gland": gland_map, "nodule": nodule_map}[task]
    for x, name, softness in ((LOGITS_X, "logits", 0.22), (MASK_X, "mask", 0.02)):
        thumbnail(ax, (x, y), truth(softness), colour, side=50)
        label(ax, (x, y - side * 41), f"{task}\n{name}", colour)
        arrow(ax, [(x, y + side * 25), (x, y + side * 45)], colour)
    box(ax, ((LOGITS_X + MASK_X) / 2, y + side * 62), (110, 34), f"soft Dice over\n{task} rows", colour)


def draw_guides(ax: Axes) -> None:
    """The region prior on its way from the gland decoder's output to the nodule decoder, once per scale."""
    gland_y, nodule_y, bus_y = MIDDLE + OFFSET, MIDDLE - OFFSET, MIDDLE
    places = [(x + next_x) / 2 for next_x, x in pairwise(DECODER_X)]
    arrow(ax, [(LOGITS_X, gland_y - 56), (LOGITS_X, bus_y), (places[-1] + 10, bus_y)], GLAND, head=False)
    box(ax, (LOGITS_X, bus_y), (28, 24), "σ", GLAND)
    label(ax, (750, bus_y + 12), "prior $P$", GLAND)
    for x in places:
        feature_x, prior_x, top = x - 10, x + 10, nodule_y + 14
        arrow(ax, [(feature_x, bus_y - 5), (feature_x, bus_y + 5)], PAPER, head=False, linewidth=6)
        arrow(ax, [(feature_x, gland_y), (feature_x, top + 8)], GLAND, head=False, linestyle=DOTTED)
        arrow(ax, [(feature_x, top + 9), (feature_x, top)], GLAND)
        label(ax, (feature_x - 10, bus_y + 30), "$G$", GLAND)
        dot(ax, (feature_x, gland_y), GLAND)
        arrow(ax, [(prior_x, bus_y), (prior_x, top)], GLAND)
        box(ax, (x + 36, bus_y), (28, 24), "↓2", GLAND)
        guide_box(ax, (x, nodule_y))


def guide_box(ax: Axes, centre: Point) -> None:
    box(ax, centre, (34, 28), colour=NODULE, linewidth=1.6)
    label(ax, centre, "RPG", NODULE, weight="bold", zorder=4)


def draw_legend(ax: Axes) -> None:
    """What the signs mean, in two rows of three."""
    (left, middle, right), (high, low) = (24, 326, 622), (58, 24)
    box(ax, (left + 14, high), (32, 22), "64", fill=0.3)
    box(ax, (left + 14, low), (28, 22), "↓2", GLAND)
    arrow(ax, [(middle, high), (middle + 28, high)])
    for y, colour in ((low + 4, GLAND), (low - 4, NODULE)):
        arrow(ax, [(middle, y), (middle + 28, y)], colour)
    guide_box(ax, (right + 14, high))
    arrow(ax, [(right, low), (right + 20, low)], GLAND, head=False, linestyle=DOTTED)
    arrow(ax, [(right + 19, low), (right + 28, low)], GLAND)
    texts = {
        (left, high): "double conv: width (64 is -width), scale",
        (left, low): "halved by nearest neighbour",
        (middle, high): "2×2 max-pool; to a decoder: skip (cat)",
        (middle, low): "into a block: 2×2 transposed conv",
        (right, high): r"region prior guide; trfe: $x + x \cdot P$",
        (right, low): "other guides: $G$ in place of $P$",
    }
    for (x, y), text in texts.items():
        label(ax, (x + 40, y), text, ha="left")


def draw_architecture(path: Path) -> None:
    ax = page(602)
    draw_inputs(ax)
    draw_encoder(ax)
    draw_decoder(ax, "gland", GLAND, 1)
    draw_decoder(ax, "nodule", NODULE, -1)
    draw_guides(ax)
    draw_legend(ax)
    save(ax, path)


# ---- guides.png


@dataclass(frozen=True)
class Guide:
    """What a panel shows: a chain of operations on the gland decoder's side, and how it meets x."""

    name: str
    origin: str
    formula: str
    chain: tuple[str, ...]  # from what the gland decoder gives to the last operation on it; "cat" takes x in
    product: bool = True  # with x, before the sum with x
    axes: bool = False  # the chain ends in two attentions, one per axis, and their product
    released: bool = True


CONV = "1×1 conv,\nBN, ReLU"
GUIDES = (
    Guide(
        "trfe",
        "RPG-A: release and figure agree",
        r"$x + x \cdot P$,   $P = \sigma$(gland logits)",
        ("gland\nlogits", "σ", "halved,\nnearest"),
    ),
    Guide("trfe1", "released RPG-B", r"$x + x \cdot G$", ("$G$",)),
    Guide(
        "trfe2",
        "released RPG-C",
        r"$x + \mathrm{fuse}(\mathrm{cat}[x, G])$",
        ("$G$", "cat", CONV, CONV),
        product=False,
    ),
    Guide(
        "trfeplus",
        "TRFE+",
        r"$x + a_h \cdot a_w$,   both from $\mathrm{cat}[x, G]$",
        ("$G$", "cat", "means over\nW and H", "1×1, GN,\nLeakyReLU"),
        product=False,
        axes=True,
    ),
    Guide(
        "trfe-b",
        "figure's RPG-B",
        r"$x + x \cdot \sigma(\mathrm{conv}_{1 \times 1}(G))$",
        ("$G$", "1×1 conv", "σ"),
        released=False,
    ),
    Guide(
        "trfe-c",
        "figure's RPG-C",
        r"$x + x \cdot \mathrm{conv}_{1 \times 1}(\mathrm{cat}[x, G])$",
        ("$G$", "cat", "1×1 conv"),
        released=False,
    ),
)
PANEL = (290, 214)
START, END = 16, 212  # in a panel: where x and the chain begin, and where they meet
ROWS = (148, 99, 55)  # of the chain, of the product, of x and the sum


def draw_chain(ax: Axes, left: float, y: float, chain: Sequence[str]) -> list[float]:
    """The chain's boxes in a row, the last one above the sum, with equal gaps; returns the x of each."""
    widths = [max(27, 14 + 5.6 * max(map(len, text.split("\n")))) for text in chain]
    gap = (END - START + widths[-1] / 2 - sum(widths)) / max(len(chain) - 1, 1)
    places = [left + START + sum(widths[:i]) + i * gap + width / 2 for i, width in enumerate(widths)]
    for i, (x, width, text) in enumerate(zip(places, widths, chain, strict=True)):
        box(ax, (x, y), (width, 32), text, SHARED if text == "cat" else GLAND, fill=0 if i else 0.3)
        if i:
            arrow(ax, [(places[i - 1] + widths[i - 1] / 2, y), (x - width / 2, y)], GLAND)
    return places


def draw_guide(ax: Axes, corner: Point, guide: Guide) -> None:
    """A panel: the gland's chain in the top row, x in the bottom row, and how they meet at the right."""
    left, bottom = corner
    right, end = left + PANEL[0] - START, left + END
    top, middle, low = (bottom + y for y in ROWS)

    frame = "-" if guide.released else DASHED
    centre = (left + PANEL[0] / 2, bottom + PANEL[1] / 2)
    box(ax, centre, PANEL, fill=0.03, linewidth=1, linestyle=frame, zorder=0)
    title, bold = bottom + PANEL[1] - 24, {"family": "monospace", "weight": "bold"}
    label(ax, (left + START, title), guide.name, size=LARGE, ha="left", va="baseline", **bold)
    label(ax, (right, title), guide.origin, SHARED, ha="right", va="baseline")
    label(ax, (centre[0], bottom + 19), guide.formula, size=NORMAL + 0.7)

    # x goes straight to the sum, and from a branch to where the chain takes it in.
    places = draw_chain(ax, left, top, guide.chain)
    box(ax, (left + START + 14, low), (28, 28), "$x$", NODULE, fill=0.3)
    arrow(ax, [(left + START + 28, low), (end - 10, low)], NODULE)
    joined = "cat" in guide.chain
    branch = places[guide.chain.index("cat")] if joined else left + START + 58
    dot(ax, (branch, low), NODULE)
    if joined:
        arrow(ax, [(branch, low), (branch, top - 16)], NODULE)
    if guide.product:
        arrow(ax, [(branch, low), (branch, middle), (end - 10, middle)], NODULE)
    if joined and guide.product:
        dot(ax, (branch, middle), NODULE)

    # The chain comes down to the sum: times x, as the product of its two attentions, or as it is.
    chain_end = [(places[-1], top), (end, top)]
    if guide.axes:
        for side, name in ((-1, "$a_h$"), (1, "$a_w$")):
            x, fork = end + side * 41, top - 25
            arrow(ax, [*chain_end, (end, fork), (x, fork), (x, middle + 11)], GLAND)
            box(ax, (x, middle), (44, 22), "1×1, σ", GLAND)
            arrow(ax, [(x - side * 22, middle), (end + side * 10, middle)], GLAND)
            label(ax, (x, middle - 20), name, GLAND, NORMAL)
    elif guide.product:
        arrow(ax, [*chain_end, (end, middle + 10)], GLAND)
    if guide.axes or guide.product:
        node(ax, (end, middle), "×")
        chain_end = [(end, middle - 10)]
    arrow(ax, [*chain_end, (end, low + 10)], GLAND)
    node(ax, (end, low), "+")
    arrow(ax, [(end + 10, low), (right - 28, low)], NODULE)
    box(ax, (right - 14, low), (28, 28), "$x'$", NODULE, fill=0.3)


def draw_guide_panels(path: Path) -> None:
    columns, margin, foot = 3, 7.5, 46
    rows = len(GUIDES) // columns
    ax = page(foot + rows * (PANEL[1] + margin))
    for i, guide in enumerate(GUIDES):
        row, column = divmod(i, columns)
        corner = (margin + column * (PANEL[0] + margin), foot + (rows - 1 - row) * (PANEL[1] + margin))
        draw_guide(ax, corner, guide)
    note = (
        "$x$: the nodule decoder's feature;  $G$: the gland decoder's at that scale;  $x'$: what goes up.\n"
        "Solid frame: as in the authors' release;  dashed: as in the paper's figure, where that differs."
    )
    label(ax, (PAGE_WIDTH / 2, foot / 2), note, SHARED, linespacing=1.4)
    save(ax, path)


def save(ax: Axes, path: Path) -> None:
    """Writes the page without a date or a version, so that the same drawing gives the same bytes."""
    ax.figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(ax.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the figures of the README.")
    parser.add_argument("-out", type=Path, default=Path(__file__).parent, help="the folder to write them to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    draw_architecture(out / "architecture.png")
    draw_guide_panels(out / "guides.png")


if __name__ == "__main__":
    main()
