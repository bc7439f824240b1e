"""Horizontal bars as SVG, grouped, readable on a light and on a dark page."""

from xml.sax.saxutils import escape

COLOURS = ["#4878a8", "#e1812c", "#3a923a", "#9372b2", "#c03d3e", "#845b53"]
WIDTH, LABEL, BAR, GAP, TOP = 860, 190, 14, 10, 60
SCALE = WIDTH - LABEL - 90


def bars(title, unit, series, rows):
    """A plot: `series` are names, `rows` are (label, [a value for each of the series, or None])."""
    longest = max((value for _, found in rows for value in found if value is not None), default=0) or 1
    height = TOP + len(rows) * (len(series) * BAR + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold" fill="#222">{escape(title)} ({escape(unit)})</text>',
    ]
    x = 12
    for name, colour in zip(series, COLOURS, strict=False):
        lines.append(f'<rect x="{x}" y="34" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{x + 15}" y="43" fill="#222">{escape(name)}</text>')
        x += 30 + 7 * len(name)
    y = TOP
    for label, found in rows:
        middle = y + len(series) * BAR / 2 + 4
        lines.append(f'<text x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end" fill="#222">{escape(label)}</text>')
        for value, colour in zip(found, COLOURS, strict=False):
            # What is measured as less than nothing is noise about nothing.
            length = 0 if value is None else max(value, 0) / longest * SCALE
            text = "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
            lines.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            end = LABEL + length + 5
            lines.append(f'<text x="{end:.1f}" y="{y + BAR - 4}" font-size="11" fill="#444">{text}</text>')
            y += BAR
        y += GAP
    return "\n".join([*lines, "</svg>", ""])
