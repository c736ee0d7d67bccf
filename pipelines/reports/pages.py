"""Pages from templates, data and charts: one file that loads nothing, and the charts as files."""

import base64
import csv
import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np

from dbl_tf import atomic
from pipelines.reports import charts, text
from pipelines.reports.charts import Chart

_TEMPLATES = importlib.resources.files(__package__) / "templates"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table that a reader sorts, searches and filters.

    Attributes:
        heading: the heading.
        values: the values of the rows, all texts or all numbers; NaN if not defined.
        digits: the number of decimal places of numbers.
        title: a phrase that explains the heading, which the page lists below the table.
        signed: whether positive numbers have a sign.
        extra: whether the table shows it only on demand.
    """

    heading: str
    values: Sequence[Any] | np.ndarray
    digits: int = 0
    title: str = ""
    signed: bool = False
    extra: bool = False

    def content(self) -> dict[str, Any]:
        """Returns what the script of the page makes a table of."""
        found = dataclasses.asdict(self) | {"text": False}
        if len(self.values) and isinstance(self.values[0], str):
            return found | {"values": list(self.values), "text": True}
        numbers = np.asarray(self.values, np.float64)
        rounded = [None if math.isnan(v) else round(v, self.digits) for v in numbers.tolist()]
        return found | {"values": rounded}


class Page:
    """Writes a page and its figures.

    Args:
        path: the path of the HTML file.
        figures_dir: the folder for the figures; `figures` next to the page if None.

    Attributes:
        data: what the script of the page reads, as types of JSON.
        charts: the charts that the page shows, by name.
    """

    def __init__(self, path: str | os.PathLike, figures_dir: str | os.PathLike | None):
        self.path = pathlib.Path(path)
        self.figures_dir = pathlib.Path(figures_dir or self.path.parent / "figures")
        self.data: dict[str, Any] = {}
        self.charts: dict[str, Chart] = {}

    def add(self, *added: Chart) -> list[Chart]:
        """Adds charts to the page and to the folder of figures; returns them for the template."""
        self.charts.update({chart.name: chart for chart in added})
        self.write_figures(*added)
        return list(added)

    def write_figures(self, *added: Chart) -> None:
        """Writes charts to the folder of figures."""
        self.figures_dir.mkdir(parents=True, exist_ok=True)
        for chart in added:
            _write(self.figures_dir / f"{chart.name}.svg", chart.svg())

    def write(self, template: str, **context: Any) -> None:
        """Writes the page.

        Args:
            template: the name of the template.
            **context: what it shows.
        """
        drawings = {name: chart.specification() for name, chart in self.charts.items()}
        scripts = [charts.javascript(), _read("page.js")]
        policy = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
            f"img-src data:; script-src {' '.join(map(_hash, scripts))}"
        )
        made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        content = (
            _environment()
            .get_template(template)
            .render(
                policy=policy,
                style=markupsafe.Markup(_read("page.css")),
                scripts=[markupsafe.Markup(script) for script in scripts],
                data=_json({**self.data, "charts": drawings}),
                made=made,
                figures=self.figures_dir.name,
                **context,
            )
        )
        _write(self.path, content)


def write_csv(
    rows: Iterable[Mapping[str, Any]], path: str | os.PathLike, columns: Sequence[str]
) -> None:
    """Writes columns of rows as a CSV file in which no spreadsheet finds a formula."""
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([text.inert(row[name]) for name in columns] for row in rows)


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names as pages show them: without control characters, not too long, and distinct."""
    shown: dict[str, None] = {}
    for name in names:
        base = candidate = text.shortened(text.plain(name), 200)
        number = 1
        while candidate in shown:
            number += 1
            candidate = f"{base} ({number})"
        shown[candidate] = None
    return tuple(shown)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, markupsafe.Markup) else text.plain(value),
    )
    environment.filters["percent"] = text.percent
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _json(data: Mapping[str, Any]) -> markupsafe.Markup:
    """Returns JSON that cannot end the element of the page that contains it."""
    content = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(content)


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _write(path: pathlib.Path, content: str) -> None:
    with atomic.replacing(path) as tmp_path:
        tmp_path.write_text(content, encoding="utf-8")
