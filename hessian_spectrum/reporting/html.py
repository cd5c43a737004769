"""HTML that is escaped by construction: elements are values, and texts become markup nowhere else.

What comes from a file is a ``str``, and every ``str`` is escaped. ``Trusted`` holds the style sheet
and the scripts, which are constants of this package, and data that ``json_text`` has written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

VOID = frozenset({"meta", "br", "hr", "col"})
PAGE_TAGS = frozenset(
    "html head meta title style script body header nav main section footer article h1 h2 h3 h4 h5 "
    "p a ul ol li dl dt dd div span strong em code pre figure figcaption details summary "
    "table caption thead tbody tr th td br noscript button".split()
)
SVG_TAGS = frozenset("svg title desc g defs path use rect clipPath text tspan image".split())
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=\s]*")
# Control characters are not allowed in HTML, and marks of direction can hide what a text says.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True)
class Trusted:
    """Text for ``style`` and ``script`` elements that is written as it is; see ``json_text``."""

    text: str

    def __post_init__(self) -> None:
        if re.search(r"</(style|script)|<!--", self.text, re.IGNORECASE):
            raise ValueError("trusted text ends its own element")


@dataclass(frozen=True)
class Element:
    """A tag with attributes and children; ``str`` of it is HTML."""

    tag: str
    attributes: dict[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return "".join(_written(self))


Node = Any  # an Element, a text, a number, None, or several of these


def element(tag: str, *children: Node, **attributes: Any) -> Element:
    """An element. ``class_`` is class, ``aria_label`` is aria-label; None and False are left out.

    Raises:
        ValueError: a tag that a page has no use for, an attribute that is a script, or a link that
            leads out of the page.
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    return checked(tag, named, children)


def checked(tag: str, attributes: dict[str, Any], children: tuple[Node, ...] = ()) -> Element:
    """``element`` with the attributes' own names."""
    if tag not in PAGE_TAGS | SVG_TAGS:
        raise ValueError(f"<{tag}>: a page has no such element")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name) or name.lower().startswith("on"):
            raise ValueError(f"{name!r}: a page has no such attribute")
        if name in ("href", "src", "xlink:href", "action") and not _leads_inside(tag, str(value)):
            raise ValueError(f"{name}={value!r}: a page leads nowhere but to its own parts")
    return Element(tag, attributes, children)


def _leads_inside(tag: str, target: str) -> bool:
    return target.startswith("#") or (tag == "image" and _PICTURE.fullmatch(target) is not None)


def shown(text: str) -> str:
    """A text with what cannot be seen as its code: U+202E becomes ``\\u202e``."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _written(node: Node) -> Iterator[str]:
    if node is None:
        return
    if isinstance(node, Trusted):
        raise ValueError("trusted text stands in <style> and <script> alone")
    if isinstance(node, (str, int, float)):
        yield escape(shown(str(node)))
    elif isinstance(node, Element):
        yield from _element(node)
    else:
        for child in node:
            yield from _written(child)


def _element(node: Element) -> Iterator[str]:
    yield f"<{node.tag}"
    for name, value in node.attributes.items():
        if value is True:
            yield f" {name}"
        elif value is not None and value is not False:
            yield f' {name}="{escape(shown(str(value)))}"'
    yield ">"
    if node.tag in VOID:
        return
    if node.tag in ("style", "script"):  # their content is no markup: nothing can be escaped there
        for child in node.children:
            if not isinstance(child, Trusted):
                raise ValueError(f"<{node.tag}> holds trusted text alone")
            yield child.text
    else:
        for child in node.children:
            yield from _written(child)
    yield f"</{node.tag}>"


def json_text(value: Any) -> Trusted:
    """JSON for a script element: no character in it can end the element, or begin a comment."""
    return inert_json(json.dumps(value, allow_nan=False, separators=(",", ":")))


def inert_json(text: str) -> Trusted:
    """JSON that somebody else has written, as ``json_text``."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Trusted(text)
