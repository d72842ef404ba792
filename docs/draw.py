"""Draw the site's two diagrams: ``python docs/draw.py`` writes ``pages/figures/*.svg``.

A group of a weight with what each part of it is called, and what one optimizer step does. Plain SVG by
hand, on a card of its own, so that it reads the same on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FIGURES = Path(__file__).parent / "pages" / "figures"

INK, FAINT, PAPER, LINE = "#1f2933", "#5b6773", "#ffffff", "#d5dbe1"
KEPT, PRUNED, EMPTY = "#3f6fd8", "#e08a3c", "#f1f3f5"

# Two groups of one row of a weight, 2:4. Magnitudes decide; the sign does not.
ROW = (0.9, -0.1, 0.2, -0.7, 0.1, 0.8, -0.6, 0.3)
N, M = 2, 4


def keep(row: Sequence[float]) -> list[bool]:
    """The N:M mask of a row: the ``N`` largest magnitudes of each ``M``, among equals the first."""
    kept = [False] * len(row)
    for start in range(0, len(row), M):
        group = sorted(range(start, start + M), key=lambda i: (-abs(row[i]), i))
        for index in group[:N]:
            kept[index] = True
    return kept


def text(x: float, y: float, content: str, *, size: int = 15, fill: str = INK, **more: str) -> str:
    """A line of text; ``more`` are SVG attributes, ``_`` for ``-``."""
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{attributes}>{content}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = LINE) -> str:
    """A rounded rectangle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def card(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole picture; ``title`` is what a screen reader says."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            'role="img" font-family="Helvetica, Arial, sans-serif">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}" stroke="{LINE}"/>',
            *parts,
            "</svg>\n",
        )
    )


def row_of_cells(
    y: float, name: str, note: str, values: Sequence[float], shown: Sequence[bool], fill: str
) -> list[str]:
    """One row of the weight: entries that are shown stand out, the others are zero."""
    parts = [
        text(24, y + 15, name, size=19, font_weight="bold"),
        text(50, y + 15, note, size=15, fill=FAINT),
    ]
    for index, (value, visible) in enumerate(zip(values, shown, strict=True)):
        x = 24 + 58 * index + 16 * (index // M)
        parts.append(box(x, y + 26, 52, 38, fill if visible else EMPTY))
        label = f"{value:.1f}".replace("-", "\N{MINUS SIGN}") if visible else "0"
        color = PAPER if visible else "#a3adb7"
        parts.append(text(x + 26, y + 51, label, fill=color, text_anchor="middle"))
    return parts


def group_picture() -> str:
    """``W = S + R`` of one row, 2:4."""
    kept = keep(ROW)
    pruned = [not value for value in kept]
    everything = [True] * len(ROW)
    parts = [text(24, 34, "Of every 4 weights along the input, the 2 largest are kept", size=17)]
    parts += row_of_cells(58, "W", "dense: what the optimizer trains", ROW, everything, INK)
    parts += row_of_cells(
        142, "S", "kept: what the network computes, saves and serves", ROW, kept, KEPT
    )
    parts += row_of_cells(
        226, "R", "pruned: remembered in training, pulled to zero", ROW, pruned, PRUNED
    )
    last = "W = S + R, exactly. The layer's weight is S; R waits beside it."
    parts.append(text(24, 326, last, fill=INK))
    title = "A row of a weight, split into kept and pruned entries: W = S + R"
    return card(530, 346, title, parts)


STEPS = (
    ("forward, backward", "weight = S;  gradient of the loss at S", KEPT),
    (
        "before the step",
        "weight \N{LEFTWARDS ARROW} S + R;  gradient += decay \N{MIDDLE DOT} R",
        PRUNED,
    ),
    ("optimizer.step()", "any torch optimizer, unchanged, on W", INK),
    ("after the step", "E = mask(W);  weight \N{LEFTWARDS ARROW} S;  R aside", PRUNED),
    ("log, evaluate, save", "weight = S;  SAD: what changed in E", KEPT),
)


def step_picture() -> str:
    """What one optimizer step does, from top to bottom."""
    parts = [text(24, 34, "One training step: the dense weight exists only inside it", size=17)]
    for index, (title, line, fill) in enumerate(STEPS):
        y = 54 + 58 * index
        parts.append(box(24, y, 482, 40, EMPTY))
        parts.append(f'<rect x="24" y="{y}" width="164" height="40" rx="4" fill="{fill}"/>')
        parts.append(text(106, y + 25, title, fill=PAPER, text_anchor="middle", font_weight="bold"))
        parts.append(text(202, y + 25, line, size=14))
        if index:
            parts.append(f'<path d="M 265 {y - 3} l -6 -9 h 12 z" fill="{FAINT}"/>')
    return card(530, 350, "What happens around one optimizer step", parts)


def main() -> None:
    """Write both pictures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, picture in (("group", group_picture()), ("step", step_picture())):
        (FIGURES / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    main()
