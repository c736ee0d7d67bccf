"""The parts of all pages: frame, style, tables and names.

A page contains its styles, figures and thumbnails, loads nothing and runs no script. All text that
comes from the user is escaped.
"""

import datetime
import math
import os
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from dbl_tf import atomic, metrics
from dbl_tf.statistics import GROUP_NAMES
from pipelines.reports import charts
from pipelines.reports.svg import STYLE, Picture, escape

MAX_TABLE_CLASSES = 150

_CSS = """*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:16px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.4em 0 .2em}
h2{font-size:1.25rem;margin:2.2em 0 .3em;border-top:1px solid var(--grid);padding-top:1em}
h3{font-size:1rem;margin:1.4em 0 .3em}
p,ul{max-width:46rem;margin:.5em 0}
ul{padding-left:1.2em}
.muted,figcaption,small{color:var(--muted)}
figcaption,small,figure p{font-size:.84rem;line-height:1.4}
figure{margin:0}
svg{display:block;width:100%;height:auto}
.panels{display:grid;gap:24px 20px;align-items:start;margin:1em 0;
grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.cards{display:grid;gap:12px;margin:1em 0;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.card{border:1px solid var(--grid);border-left:5px solid var(--c);border-radius:4px;
padding:8px 12px}
.card b{display:block;font-size:1.7rem;line-height:1.25}
.scroll{overflow-x:auto;max-width:100%;margin:.6em 0}
table{border-collapse:collapse;overflow-wrap:normal;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:3px 9px;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}
th{text-align:right;vertical-align:bottom;white-space:normal;color:var(--muted);font-weight:600}
th:first-child,td:first-child,.l{text-align:left}
@media(min-width:1100px){.wide{grid-column:span 2}}
td:first-child{max-width:15rem;overflow:hidden;text-overflow:ellipsis}
td.bar{background:linear-gradient(to right,var(--c) var(--v),transparent 0) left bottom/100% 3px
no-repeat}
.thumbs{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}
.thumbs img{display:block;width:100%;height:170px;object-fit:contain;background:var(--grid)}
.thumbs img.small{image-rendering:pixelated}
details{margin:.8em 0}summary{cursor:pointer}
.no{color:var(--red)}
p bdi,li bdi,figcaption bdi{background:var(--grid);border-radius:3px;padding:0 .3em}
figcaption small bdi{background:none;padding:0}"""

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page:
    """A page that collects its parts and then writes itself and its figures.

    Args:
        path: the path of the HTML file.
        figures_dir: the folder for the figures; `figures` next to the page if None.
    """

    def __init__(self, path: str | os.PathLike, figures_dir: str | os.PathLike | None):
        self.path = pathlib.Path(path)
        self.figures_dir = pathlib.Path(figures_dir or self.path.parent / "figures")
        self.parts: list[str] = []
        self.pictures: list[Picture] = []

    def add(self, *parts: str) -> None:
        """Appends HTML."""
        self.parts.extend(parts)

    def add_panels(self, pictures: Sequence[Picture], extra: str = "") -> None:
        """Appends figures with their captions, as many in a row as fit on the screen.

        Args:
            pictures: the figures, which are also written as files.
            extra: HTML that follows them in the same rows, two figures wide.
        """
        self.pictures.extend(pictures)
        panels = "".join(
            f"<figure>{p.inline()}<figcaption>{escape(p.caption)}</figcaption></figure>"
            for p in pictures
        )
        self.add(f'<div class="panels">{panels}{extra}</div>')

    def write(self, title: str) -> None:
        """Writes the figures and then the page.

        Args:
            title: the title of the browser tab, as plain text.
        """
        self.figures_dir.mkdir(parents=True, exist_ok=True)
        for picture in self.pictures:
            _write(self.figures_dir / f"{picture.name}.svg", picture.document())
        made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        _write(
            self.path,
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}\n{_CSS}</style></head><body>\n"
            + "\n".join(self.parts)
            + f'\n<p class="muted"><small>Made by dbl_tf, {escape(made)}. The folder '
            f"{named(self.figures_dir.name)} holds the figures as files; they follow Wu et al., "
            "Distribution-Balanced Loss, ECCV 2020.</small></p></body></html>\n",
        )


def _write(path: pathlib.Path, text: str) -> None:
    with atomic.replacing(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def named(value: object) -> str:
    """Returns a user's name for use within a sentence, whatever the direction of its script."""
    return f"<bdi>{escape(value)}</bdi>"


class Cell(str):
    """The HTML element of a table cell."""


def value_cell(metric: metrics.Metric, value: float, deviation: float = math.nan) -> Cell:
    """Makes a cell of a value of a metric, with its standard deviation unless that is NaN."""
    return Cell(f"<td>{metric.text(value, deviation)}</td>")


def bar_cell(metric: metrics.Metric, value: float, color: str) -> Cell:
    """Makes a cell of a fraction of 1, with a bar of this length below it."""
    if math.isnan(value):
        return value_cell(metric, value)
    return Cell(
        f'<td class="bar" style="--v:{100 * value:.1f}%;--c:var({color})">{metric.text(value)}</td>'
    )


def name_cell(name: str) -> Cell:
    """Makes a cell of a name; the pointer shows the full name if the column is too narrow."""
    return Cell(f'<td title="{escape(name)}">{named(name)}</td>')


def left_cell(value: object) -> Cell:
    """Makes a cell of left-aligned text."""
    return Cell(f'<td class="l">{escape(value)}</td>')


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ("group",)
) -> str:
    """Makes a table in a box that scrolls if the table is wider than the page.

    Args:
        heads: the headings of the columns.
        rows: the cells of each row, which are text unless they are a `Cell`.
        left: the headings of left-aligned columns; the first column always is left-aligned.
    """
    lines = [
        "<tr>"
        + "".join(c if isinstance(c, Cell) else f"<td>{escape(c)}</td>" for c in row)
        + "</tr>\n"
        for row in rows
    ]
    head = "".join(f"<th{' class=l' if h in left else ''}>{escape(h)}</th>" for h in heads)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n'
        f"{''.join(lines)}</tbody></table></div>"
    )


def shown_classes(classes: charts.Classes, average_precision: np.ndarray) -> tuple[list[int], str]:
    """Chooses the classes that a table shows.

    Args:
        classes: all classes.
        average_precision: the average precision of each class, (C,); NaN if not defined.

    Returns:
        The columns of the chosen classes in arrays of labels and scores, the most frequent class
        first, and a note about the others as HTML, which is empty if all classes are shown.
    """
    if len(classes) <= MAX_TABLE_CLASSES:
        return [int(i) for i in classes.index], ""
    half = MAX_TABLE_CLASSES // (2 * len(GROUP_NAMES))
    shown: set[int] = set()
    for group in GROUP_NAMES:
        members = classes.index[np.array(classes.groups) == group]
        members = members[~np.isnan(average_precision[members])]
        ranked = members[np.argsort(-average_precision[members], kind="stable")]
        shown.update(int(i) for i in [*ranked[:half], *ranked[-half:]])
    note = (
        f'<p class="muted">Shown are {len(shown)} of {len(classes):,} labels: of each group, the '
        f"{half} best and the {half} worst. The others are in metrics.json.</p>"
    )
    return [int(i) for i in classes.index if int(i) in shown], note


def published_cells(row: Sequence[float]) -> list[str]:
    """Formats published values in percent with the digits that were printed."""
    return [f"{value:.2f}" for value in row]
