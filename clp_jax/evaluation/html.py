"""A report as one HTML file: it needs no other file and no network, and runs no script."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence

# The policy forbids the browser to fetch anything, whatever the completions hold.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; color: #222; margin: 2em auto; max-width: 84em; \
padding: 0 1em; }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1em 0; \
font-variant-numeric: tabular-nums; }}
th, td {{ border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }}
th {{ background: #f2f2f2; }}
td {{ white-space: pre-line; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
img {{ max-width: 100%; }}
blockquote {{ border-left: 3px solid #ccc; margin: 1em 0; padding-left: 1em; \
white-space: pre-line; overflow-wrap: anywhere; }}
</style>
</head>
<body>
"""


def page(title: str, blocks: Sequence[str]) -> str:
    """A whole document.

    Args:
      title: text.
      blocks: HTML, of the functions below.
    """
    head = _HEAD.format(title=html.escape(title))
    return "\n".join([head + heading(title, 1), *blocks, "</body>\n</html>\n"])


def heading(text: str, level: int = 2) -> str:
    """A heading; `level` 1 is the page's."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def lines(texts: Sequence[str]) -> str:
    """An unordered list."""
    items = "".join(f"<li>{html.escape(text)}</li>\n" for text in texts)
    return f"<ul>\n{items}</ul>"


def quotation(text: str) -> str:
    """A text of the data, with its line breaks."""
    return f"<blockquote>{html.escape(text)}</blockquote>"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows that have the columns of the first; line breaks in cells are kept."""
    header = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in rows[0]) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{header}</tr>\n{body}</table></div>'


def figure(png: pathlib.Path, caption: str) -> str:
    """A PNG file, held in the page itself."""
    data = base64.b64encode(png.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
