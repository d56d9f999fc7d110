"""A bar chart as SVG: no library, and it reads in light and dark."""

from collections.abc import Mapping
from html import escape

WIDTH, LABEL, ROW, BAR = 720, 170, 30, 18


def chart(rates: Mapping[str, float], unit: str = "emails/s") -> str:
    """Horizontal bars in the order given; the first stands out."""
    longest = max(rates.values()) or 1.0
    height = ROW * len(rates) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-size="14" role="img">',
        "<style>text{fill:#222;font-family:sans-serif}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
    ]
    for number, (name, rate) in enumerate(rates.items()):
        top = number * ROW + 8
        length = max(2, round((WIDTH - LABEL - 130) * rate / longest))
        colour = "#2f6fde" if number == 0 else "#9aa5b1"
        lines += [
            f'<text x="{LABEL - 10}" y="{top + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{top}" width="{length}" height="{BAR}" rx="3" fill="{colour}"/>',
            f'<text x="{LABEL + length + 8}" y="{top + 14}">{rate:,.0f} {escape(unit)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
