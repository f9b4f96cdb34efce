"""Numbers as text: in tables, sentences and figures."""

from typing import Any


def fixed(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number with a fixed number of decimals, a real minus sign, and no negative zero."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        return ("±" if signed else "") + text.lstrip("+-")
    return text.replace("-", "−")


def percent(share: float, *, signed: bool = False) -> str:
    """A share, or a difference of shares, in % with one decimal and without the sign."""
    return fixed(100 * share, signed=signed)


def percent_range(low: float, high: float) -> str:
    """Two shares in %, such as 95.0–98.2."""
    return f"{percent(low)}–{percent(high)}"


def three_digits(value: float) -> str:
    """A positive number with three digits: 0.0389, 5.27, 604, 1,204."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def short(value: Any) -> str:
    """A value as a short text: 0.25, 3e-5, 1200, stage5, true."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | str):
        return str(value)
    if value and not 1e-2 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
