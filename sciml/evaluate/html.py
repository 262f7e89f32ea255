"""Pages without outside files: their style, sections and images."""

import base64
import html
import io
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; font-size: .82rem; line-height: 1.4 }
img { max-width: 100% } .note { color: #666 }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page; ``body`` is HTML, ``style`` is added to STYLE."""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{name}</title><style>{STYLE}{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading and HTML below it."""
    return f"<h2>{html.escape(title)}</h2>{content}"


def image(data: bytes, description: str = "") -> str:
    """A PNG, inside the page."""
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def png(drawing: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=150)
    return buffer.getvalue()
