"""What a person would read of a piece of HTML: no tags, no scripts, character references decoded.

One text: "Don&#39;t <b>buy</b> it! <script>track()</script>It broke." -> "Don't buy it! It broke."
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

LONE_SIGN = re.compile(r"<(?!/?[a-zA-Z][^<>]*>|!--.*?-->|![a-zA-Z][^<>]*>)", re.DOTALL)
"""A `<` that begins no whole tag ("a < b", "I <3 it") is a sign, and a parser must not take the rest for a tag."""
BREAKS = frozenset({
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption", "figure",
    "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre",
    "section", "table", "td", "th", "tr", "ul",
})  # fmt: skip
"""Elements that stand on a line of their own."""
UNREAD = frozenset({"script", "style", "template"})


class _Reader(HTMLParser):
    """Collects the text between the tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.unread = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A line begins, or what nobody reads."""
        del attrs
        self.unread += tag in UNREAD
        if tag in BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """A line ends, or what nobody reads."""
        self.unread -= tag in UNREAD and self.unread > 0
        if tag in BREAKS and tag != "br":
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Text."""
        if not self.unread:
            self.parts.append(data)


def text_of_html(text: str) -> str:
    """The text of a piece of HTML; a text without `<` and `&` is returned as it is.

    Args:
        text: HTML, or a plain text; a `<` that begins no whole tag stays.
    """
    if "<" not in text and "&" not in text:
        return text
    for tag in UNREAD:  # "the <style> of 23 is good" is about a tag, and nothing ends it
        if f"</{tag}" not in text.casefold():
            text = re.sub(rf"<(?={tag}\b)", "&lt;", text, flags=re.IGNORECASE)
    reader = _Reader()
    reader.feed(LONE_SIGN.sub("&lt;", text))
    reader.close()
    return "".join(reader.parts)
