"""How pages write numbers, and names that others have chosen."""

import math
import re
import unicodedata

# Control characters, marks that turn the direction of the text around them, and half characters,
# which no file can hold. The direction of a name itself is that of its letters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHOWN = 40
# What a spreadsheet takes for the beginning of a formula, also behind blanks.
_FORMULA = re.compile(r"^\s*[=+\-@\t\r]")


def plain(value: object) -> str:
    """Returns a text without control characters; in place of each stands U+FFFD."""
    return _UNSAFE.sub("\ufffd", str(value))


def shortened(name: str, limit: int = _SHOWN) -> str:
    """Cuts a text to a number of characters, the last of which tells that there are more."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def inert(value: object) -> object:
    """Returns a cell of a CSV file that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if _FORMULA.match(unicodedata.normalize("NFKC", text)) else text


def percent(value: float, digits: int = 1, deviation: float = math.nan) -> str:
    """Formats a fraction of 1 in percent; NaN becomes a dash.

    A value that is not 0 but would be rounded to it gets as many digits as it takes.
    """
    if math.isnan(value):
        return "–"
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:,.{digits}f}"
    shown = f"{100 * value:,.{digits}f}"
    if value and not spread and not round(100 * value, digits):
        shown = f"{100 * value:.1g}"
    return f"{shown}{spread}\u00a0%"


def span(lowest: int, highest: int) -> str:
    """Formats a range of counts, which may be a single one."""
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def labels_in_mean(tested: int, untested: int) -> str:
    """Says over how many labels a mean goes, and how many it leaves out for want of test images."""
    said = f"{tested:,} {'label' if tested == 1 else 'labels'}"
    return f"{said}; {untested:,} without test images left out" if untested else said
