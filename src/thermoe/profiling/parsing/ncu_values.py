"""Numbers of an ncu table: separators of any locale, units of any scale."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SPACES = dict.fromkeys(map(ord, " \u00a0\u202f\u2009'\u2019"))
_NUMBER = re.compile(r"^[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?$", re.ASCII)
_PREFIX = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BASES = {
    **dict.fromkeys(("s", "second", "seconds", "sec"), "second"),
    **dict.fromkeys(("byte", "bytes", "B"), "byte"),
    **dict.fromkeys(("hz", "Hz", "HZ"), "hz"),
    **dict.fromkeys(("cycle", "cycles"), "cycle"),
    **dict.fromkeys(("inst", "instruction", "instructions"), "inst"),
    **dict.fromkeys(("sector", "sectors"), "sector"),
    **dict.fromkeys(("register", "registers"), "register"),
    **dict.fromkeys(("thread", "threads"), "thread"),
    **dict.fromkeys(("block", "warp", "request"), ""),
}


@dataclass(frozen=True, slots=True)
class Locale:
    """How a table writes numbers.

    Attributes:
        decimal: Sign before the fraction, "." or ",".
        grouping: Sign between thousands, or "" where only spaces are used.
    """

    decimal: str = "."
    grouping: str = ","

    def number(self, text: str) -> float | None:
        """The value of a cell; `None` if it is no number, as "n/a" is none."""
        plain = text.strip().translate(_SPACES)
        if not _NUMBER.match(plain):
            return None
        plain = plain.replace(self.grouping, "") if self.grouping else plain
        try:
            return float(plain.replace(self.decimal, "."))
        except ValueError:
            return None


def find_locale(cells: Iterable[str]) -> Locale:
    """The locale in which most of the cells that can only be read one way make sense.

    "1.234" may be a thousand or a fraction; "1.234,5", "12,34" and "1.234.567" tell.
    """
    votes = {".": 0, ",": 0}
    for cell in cells:
        sign = _decimal_sign(cell.strip().translate(_SPACES))
        if sign:
            votes[sign] += 1
    return Locale(",", ".") if votes[","] > votes["."] else Locale()


def _decimal_sign(text: str) -> str | None:
    """The sign that must be the decimal one in this cell; `None` where both readings are possible."""
    if not _NUMBER.match(text):
        return None
    dots, commas = text.count("."), text.count(",")
    if dots and commas:
        return "." if text.rfind(".") > text.rfind(",") else ","
    if not dots and not commas:
        return None
    sign, other, count = (".", ",", dots) if dots else (",", ".", commas)
    if count > 1:
        return other
    whole, fraction = text.lstrip("+-").split(sign)
    is_grouping = len(fraction) == 3 and fraction.isdecimal() and 1 <= len(whole) <= 3 and whole != "0"
    return None if is_grouping else sign


def base_unit(unit: str) -> tuple[float, str]:
    """Factor to base units, and the base unit: "Kbyte/second" is (1000, "byte/second"), "usecond" (1e-6, "second")."""
    factor, names = 1.0, []
    for index, part in enumerate(unit.strip().split("/")):
        scale, base = _split_prefix(part.strip())
        factor = factor / scale if index else factor * scale
        names.append(base)
    return factor, "/".join(names).rstrip("/")


def _split_prefix(part: str) -> tuple[float, str]:
    if part in _BASES:
        return 1.0, _BASES[part]
    if part[:1] in _PREFIX and part[1:] in _BASES:
        return _PREFIX[part[0]], _BASES[part[1:]]
    return 1.0, part
