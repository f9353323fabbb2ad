"""What objects look like in a notebook: small tables and a curve, in plain HTML and SVG."""
from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["table", "curve", "passage"]


def table(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns under a title."""
    lines = "".join(f"<tr><td>{html.escape(str(name))}</td>"
                    f"<td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<p><b>{html.escape(title)}</b></p><table>{lines}</table>"


def passage(prompt: str, text: str) -> str:
    """A prompt and what a model made of it."""
    return (f"<pre style='white-space: pre-wrap'>{html.escape(prompt)}"
            f"<b>{html.escape(text)}</b></pre>")


def curve(title: str, values: Sequence[float], width: int = 480, height: int = 96) -> str:
    """A curve of values over their index, from 0 up."""
    top = max([*values, 1])
    last = max(len(values) - 1, 1)
    points = " ".join(f"{width * at / last:.1f},{height - height * value / top:.1f}"
                      for at, value in enumerate(values))
    return (f"<p>{html.escape(title)}: 0 to {top:,}</p><svg width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}'><polyline points='{points}' fill='none' "
            "stroke='currentColor'/></svg>")
