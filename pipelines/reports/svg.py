"""Draws charts as SVG for a light or a dark background, in a page or as files.

A panel is as wide as a phone, so that its text is readable there; a wider page shows several panels
side by side. Colors are CSS variables, which pages and files define by the same `STYLE`.
"""

import dataclasses
import html
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# Okabe and Ito's colors, which color-blind readers can tell apart; lighter on a dark background.
STYLE = """:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--muted:#5c5c5c;--grid:#dedede;
--grey:#8c8c8c;--blue:#0072b2;--orange:#d98e00;--red:#c74e00;--green:#00876a;--purple:#b2558a}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#ececec;--muted:#a9adb3;
--grid:#363b42;--grey:#9a9a9a;--blue:#56b4e9;--orange:#f0b030;--red:#ff7f3f;--green:#2fc79d;
--purple:#dd90ba}}"""

WIDTH = 360
_FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
_MARGIN = 10
_LINE_HEIGHT = 15
MAX_ROW_LABEL = 112
NAME_LINE = 13
_MAX_COLUMN_LABEL = 80
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def escape(value: object) -> str:
    """Makes text safe in HTML and SVG, including attributes.

    Names of files and labels come from the user and may contain anything. Characters that the
    formats do not allow become U+FFFD.
    """
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


def percent(fraction: float, digits: int = 1, deviation: float = math.nan) -> str:
    """Formats a fraction for a sentence, as in "38.3 %" or "38.3 ± 0.4 %"; NaN becomes a dash.

    Args:
        fraction: a fraction of 1.
        digits: the number of decimal places; more if they would round the fraction to zero.
        deviation: the standard deviation of the fraction; NaN if there is none.
    """
    if math.isnan(fraction):
        return "–"
    if digits and 0 < fraction < 0.005 * 0.1**digits:
        number = np.format_float_positional(100 * fraction, 2, fractional=False, trim="-")
    else:
        number = f"{100 * fraction:.{digits}f}"
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.{digits}f}"
    return f"{number}{spread}\u00a0%"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A finished panel.

    Attributes:
        name: the name of its file without the suffix.
        title: a title that says what it shows.
        caption: a sentence that explains it.
        width: the width in pixels at which its text is 11 pixels high.
        height: the height in pixels.
        body: its SVG elements.
    """

    name: str
    title: str
    caption: str
    width: int
    height: int
    body: str

    def inline(self) -> str:
        """Returns the element for a page that defines `STYLE`."""
        return self._element("", "")

    def document(self) -> str:
        """Returns the content of an SVG file."""
        style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
        return self._element(f' xmlns="http://www.w3.org/2000/svg" width="{self.width}"', style)

    def _element(self, attributes: str, before: str) -> str:
        return (
            f'<svg{attributes} viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}" style="{_FONT};font-size:11px">'
            f"{before}{self.body}</svg>\n"
        )


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of numbers from `low` to `high`.

    Attributes:
        label: a text that says what the numbers are.
        low: the lower end.
        high: the upper end.
        log: whether the scale is logarithmic.
        percent: whether the numbers are fractions of 1, labeled in percent.
        whole: whether only whole numbers are labeled.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False

    def place(self, values: object) -> np.ndarray:
        """Returns the positions of values between the ends, clipped to [0, 1]."""
        values = np.clip(np.asarray(values, np.float64), self.low, self.high)
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return (values - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Returns round values and their labels."""
        scale, unit = (100, "\u00a0%") if self.percent else (1, "")
        if self.log:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1,) if len(decades) > 2 else (1, 2, 5)
            values = [f * 10.0**d for d in (*decades, decades.stop) for f in factors]
            values = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        else:
            rough = max((self.high - self.low) / 5, 1.0 if self.whole else 0.0)
            power = 10.0 ** math.floor(math.log10(rough))
            steps = (1, 2, 5, 10) if self.whole else (1, 2, 2.5, 5, 10)
            step = next(f * power for f in steps if f * power >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            values = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(v, f"{round(scale * v, 10):g}".replace("-", "−") + unit) for v in values]


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend; `mark` is "bar", "line", "dash", "dot", "ring", "tick" or "ramp"."""

    label: str
    color: str
    mark: str


class Panel:
    """A chart that starts with title, legend and axes, and to which methods add the marks.

    Args:
        name: see `Picture`.
        title: see `Picture`.
        caption: see `Picture`.
        x: the horizontal axis, or the names of columns from left to right.
        y: the vertical axis, or the names of rows from top to bottom.
        keys: the entries of the legend.
        height: the height of the plot area in pixels, or that of one row if y holds names.
    """

    def __init__(
        self,
        name: str,
        title: str,
        caption: str,
        x: Axis | Sequence[str],
        y: Axis | Sequence[str],
        keys: Sequence[Key] = (),
        height: int = 200,
    ):
        self.name, self.title, self.caption, self.x, self.y = name, title, caption, x, y
        self._columns: Sequence[str] = () if isinstance(x, Axis) else x
        self._rows: Sequence[str] = () if isinstance(y, Axis) else y
        self._elements: list[str] = []
        top: float = self._add_title() + 6
        top = self._add_legend(keys, top) + 9
        if isinstance(y, Axis):
            left = 8 + max(text_width(label) for _, label in y.ticks())
            self.text(_MARGIN, top + 8, y.label, color="--muted")
            top += _LINE_HEIGHT + 2
        else:
            left = 6 + min(max((text_width(name) for name in y), default=0), MAX_ROW_LABEL)
            height *= len(y)
        if not isinstance(x, Axis):
            top += min(max(map(text_width, x), default=0), _MAX_COLUMN_LABEL)
        self.left, self.right = _MARGIN + math.ceil(left), WIDTH - _MARGIN - 6
        self.top, self.bottom = round(top), round(top) + height
        self._add_axes()

    def at(self, x: object, y: object) -> tuple[np.ndarray, np.ndarray]:
        """Converts values to pixels, and the number of a row or column to its middle in pixels."""
        right = _fraction(self.x, x)
        down = 1.0 - _fraction(self.y, y) if isinstance(self.y, Axis) else _fraction(self.y, y)
        return (
            self.left + right * (self.right - self.left),
            self.top + down * (self.bottom - self.top),
        )

    def line(
        self, x: object, y: object, color: str, *, dashed: bool = False, steps: bool = False
    ) -> None:
        """Draws a line through points, or steps that end at them; NaN interrupts it."""
        across, down = self.at(x, y)
        commands, pen_up = [], True
        for i in range(len(across)):
            if math.isnan(across[i]) or math.isnan(down[i]):
                pen_up = True
                continue
            if pen_up:
                commands.append(f"M{across[i]:.1f} {down[i]:.1f}")
            elif steps:
                commands.append(f"V{down[i]:.1f}H{across[i]:.1f}")
            else:
                commands.append(f"L{across[i]:.1f} {down[i]:.1f}")
            pen_up = False
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self._add(
            f'<path d="{"".join(commands)}" fill="none" stroke="var({color})" '
            f'stroke-width="1.8" stroke-linejoin="round"{dash}/>'
        )

    def dot(
        self, x: float, y: float, color: str, tip: str = "", *, ring: bool = False, r: float = 3
    ) -> None:
        """Draws a dot of radius r, or a ring. `tip` appears while the pointer is on it."""
        across, down = self.at(x, y)
        fill = f'fill="none" stroke="var({color})" stroke-width="1.6"'
        fill = fill if ring else f'fill="var({color})"'
        self._add(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{4.5 if ring else r}" {fill}', tip)

    def bar(
        self, low: float, high: float, row: int, color: str, tip: str = "", thick: float = 0.62
    ) -> None:
        """Draws a horizontal bar between two values; `thick` is its share of the row's height."""
        (start, end), (middle, _) = self.at([low, high], [row, row])
        thickness = thick * (self.bottom - self.top) / len(self._rows)
        start, end = min(start, end), max(start, end)
        self._add(
            f'<rect x="{start:.1f}" y="{middle - thickness / 2:.1f}" width="{end - start:.1f}" '
            f'height="{thickness:.1f}" fill="var({color})"',
            tip,
        )

    def tick(self, value: float, row: int, color: str) -> None:
        """Draws a short vertical mark on a row."""
        across, down = self.at(value, row)
        half = 0.42 * (self.bottom - self.top) / len(self._rows)
        self._add(
            f'<path d="M{across:.1f} {down - half:.1f}V{down + half:.1f}" stroke="var({color})" '
            'stroke-width="2"/>'
        )

    def shade(self, matrix: np.ndarray, tip: str = "") -> None:
        """Draws a field for each row and column, darker the nearer its fraction is to 1.

        Args:
            matrix: fractions of 1, [row, column].
            tip: a text that appears while the pointer is on a field, with {row}, {column} and
                {value} filled in.
        """
        width = (self.right - self.left) / matrix.shape[1]
        height = (self.bottom - self.top) / matrix.shape[0]
        self._add('<g fill="var(--blue)">')
        by_shade: dict[str, list[str]] = {}
        for row, column in np.argwhere(matrix >= 0.005):
            across, down = self.left + column * width, self.top + row * height
            value = matrix[row, column]
            if tip:
                names = {"row": self._rows[row], "column": self._columns[column]}
                text = tip.format(**names, value=percent(value))
                self._add(
                    f'<rect x="{across:.1f}" y="{down:.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}" opacity="{value:.2f}"',
                    text,
                )
            else:
                field = f"M{across:.1f} {down:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
                by_shade.setdefault(f"{value:.2f}", []).append(field)
        for shade, fields in by_shade.items():
            self._add(f'<path d="{"".join(fields)}" opacity="{shade}"/>')
        self._add("</g>")

    def whisker(self, x: float, low: float, high: float, color: str) -> None:
        """Draws a vertical line between two values of y."""
        (across, _), (start, end) = self.at([x, x], [low, high])
        self._add(
            f'<path d="M{across:.1f} {start:.1f}V{end:.1f}" stroke="var({color})" '
            'stroke-width="1.2"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: str = "--ink",
        anchor: str = "start",
        more: str = "",
    ) -> None:
        """Writes text at a place in pixels. `more` holds further attributes of the element."""
        self._add(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="var({color})" text-anchor="{anchor}"{more}>'
            f"{escape(text)}</text>"
        )

    def picture(self) -> Picture:
        """Returns the finished chart."""
        return Picture(
            self.name,
            self.title,
            self.caption,
            WIDTH,
            self.bottom + (38 if isinstance(self.x, Axis) else 10),
            "".join(self._elements),
        )

    def _add(self, element: str, tip: str = "") -> None:
        if element.endswith(">"):
            self._elements.append(element)
        elif tip:
            tag = element[1 : element.index(" ")]
            self._elements.append(f"{element}><title>{escape(tip)}</title></{tag}>")
        else:
            self._elements.append(f"{element}/>")

    def _add_title(self) -> int:
        baseline = 4
        for line in wrapped(self.title, (WIDTH - 2 * _MARGIN) / 1.28):
            baseline += _LINE_HEIGHT + 1
            self.text(_MARGIN, baseline, line, more=' font-size="13" font-weight="600"')
        return baseline

    def _add_legend(self, keys: Sequence[Key], top: float) -> float:
        across: float = _MARGIN
        baseline = top + 12
        for key in keys:
            label = shortened(key.label, WIDTH - 2 * _MARGIN - 24)
            width = 24 + text_width(label) + 12
            if across > _MARGIN and across + width > WIDTH:
                across, baseline = _MARGIN, baseline + _LINE_HEIGHT
            self._add(_legend_mark(key, across, baseline - 4))
            self.text(across + 24, baseline, label)
            across += width
        return baseline if keys else top

    def _add_axes(self) -> None:
        if isinstance(self.x, Axis):
            for value, label in self.x.ticks():
                across = self.left + float(self.x.place(value)) * (self.right - self.left)
                self._add(_rule(f"M{across:.1f} {self.top}V{self.bottom}"))
                # Without the shift, the label at the right end would extend beyond the panel.
                shift = min(0, WIDTH - 2 - across - text_width(label) / 2)
                self.text(across + shift, self.bottom + 14, label, "--muted", "middle")
            self.text(self.right, self.bottom + 30, self.x.label, "--muted", "end")
        else:
            for column, name in enumerate(self._columns):
                across = float(self.at(column, 0)[0])
                turned = f' transform="rotate(-90 {across + 4:.1f} {self.top - 5})"'
                space = (_MAX_COLUMN_LABEL, (self.right - self.left) / len(self._columns))
                self._add_name(across + 4, self.top - 5, name, space, turned)
        if isinstance(self.y, Axis):
            for value, label in self.y.ticks():
                down = self.bottom - float(self.y.place(value)) * (self.bottom - self.top)
                self._add(_rule(f"M{self.left} {down:.1f}H{self.right}"))
                self.text(self.left - 5, down + 4, label, "--muted", "end")
        else:
            for row, name in enumerate(self._rows):
                down = float(self.at(0, row)[1])
                space = (self.left - _MARGIN - 6, (self.bottom - self.top) / len(self._rows))
                self._add_name(self.left - 6, down + 4, name, space, ' text-anchor="end"')
        self._add(
            f'<path d="M{self.left} {self.top}V{self.bottom}H{self.right}" fill="none" '
            'stroke="var(--muted)"/>'
        )

    def _add_name(
        self, x: float, y: float, name: str, space: tuple[float, float], more: str
    ) -> None:
        """Writes the name of a row or column, in several lines if there is room.

        If a name has to be cut, the full name appears while the pointer is on it.

        Args:
            x: the horizontal place in pixels.
            y: the vertical place in pixels.
            name: the name.
            space: the available length and the distance to the next name, in pixels.
            more: further attributes of the element.
        """
        size = min(11.0, space[1])
        width = space[0] * 11.0 / size
        lines = [name] if text_width(name) <= width else wrapped(name, width)
        if len(lines) * NAME_LINE > space[1]:
            lines = [shortened(name, width)]
        tip = f"<title>{escape(name)}</title>" if " ".join(lines) != name else ""
        small = f' font-size="{size:.1f}"' if size < 11 else ""
        y -= (len(lines) - 1) * NAME_LINE / 2
        for line in lines:
            self._add(
                f'<text x="{x:.1f}" y="{y:.1f}" fill="var(--ink)"{small}{more}>{escape(line)}{tip}'
                "</text>"
            )
            y += NAME_LINE


def _fraction(axis: Axis | Sequence[str], values: object) -> np.ndarray:
    if isinstance(axis, Axis):
        return axis.place(values)
    return (np.asarray(values, np.float64) + 0.5) / len(axis)


def text_width(text: str) -> float:
    """Estimates the largest width of a text in pixels, at a font size of 11 in any font."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return 6.3 * (len(text) - wide) + 11.5 * wide


def shortened(text: str, width: float) -> str:
    """Returns the text, cut and ended with "…" if it is wider."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, width: float) -> list[str]:
    """Breaks a text into lines of at most this width; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, width))
    return lines


def _rule(path: str) -> str:
    return f'<path d="{path}" stroke="var(--grid)"/>'


def _legend_mark(key: Key, x: float, y: float) -> str:
    color, middle = f"var({key.color})", x + 10
    if key.mark == "bar":
        return f'<rect x="{x + 2}" y="{y - 4}" width="16" height="8" fill="{color}"/>'
    if key.mark == "dot":
        return f'<circle cx="{middle}" cy="{y}" r="3.5" fill="{color}"/>'
    if key.mark == "ring":
        return (
            f'<circle cx="{middle}" cy="{y}" r="4.5" fill="none" stroke="{color}" '
            'stroke-width="1.6"/>'
        )
    if key.mark == "ramp":
        return "".join(
            f'<rect x="{x + 5 * k}" y="{y - 5}" width="5" height="10" fill="{color}" '
            f'opacity="{k / 3:.2f}"/>'
            for k in range(4)
        )
    if key.mark == "tick":
        return f'<path d="M{middle} {y - 5}V{y + 5}" stroke="{color}" stroke-width="2"/>'
    dash = ' stroke-dasharray="5 3"' if key.mark == "dash" else ""
    return f'<path d="M{x} {y}H{x + 20}" stroke="{color}" stroke-width="2"{dash}/>'
