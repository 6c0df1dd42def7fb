"""Quantities and texts as people read them."""

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECONDS_PER_MINUTE = 60
_SECONDS_PER_HOUR = 3600
_SECONDS_PER_DAY = 86400


def size(amount_bytes: float) -> str:
    """10952166604 -> "10.2 GiB"; whole numbers and large ones lose their decimals."""
    value = float(amount_bytes)
    unit = _BINARY_UNITS[0]
    for unit in _BINARY_UNITS:
        if abs(value) < 1024 or unit == _BINARY_UNITS[-1]:
            break
        value /= 1024
    digits = 0 if value >= 100 or value == int(value) else 1
    return f"{value:.{digits}f} {unit}"


def percent(value: float, told_apart_from: float | None = None) -> str:
    """43.2 -> "43%"; with as many decimals as it takes to differ from the other value."""
    for digits in (0, 1, 2, 3):
        text = f"{value:.{digits}f}"
        if told_apart_from is None or text != f"{told_apart_from:.{digits}f}":
            break
    return f"{text}%"


def duration(seconds: float) -> str:
    """3671 -> "1h 01m"; two units are as much as anybody reads."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < _SECONDS_PER_MINUTE:
        return f"{whole}s"
    if whole < _SECONDS_PER_HOUR:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < _SECONDS_PER_DAY:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def count(number: int, noun: str) -> str:
    """1 -> "1 job", 2 -> "2 jobs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """The text with everything a terminal would act on made visible.

    Commands of other users and output of jobs come from people we do not trust with our terminal.
    """
    if text.isprintable():
        return text
    return "".join(" " if c in "\t\n\r" else c if c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else "\N{REPLACEMENT CHARACTER}"


def shortened(text: str, width: int) -> str:
    """At most `width` characters; says by an ellipsis that there was more."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
