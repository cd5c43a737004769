"""Elements are escaped by construction: a text is never markup, a script, or a link."""

import html
import json
import re

import pytest
from reported import HOSTILE, Page

from hessian_spectrum.reporting.html import Trusted, element, json_text


def test_texts_and_attributes_are_read_as_they_were():
    page = Page(str(element("p", HOSTILE, element("a", HOSTILE, href="#x"), title=HOSTILE)))
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert [tag for tag, _ in page.elements] == ["p", "a"]
    assert page.all("p") == [{"title": shown}]
    assert page.texts.count(shown) == 2 or "".join(page.texts) == 2 * shown


@pytest.mark.parametrize("seen", ["\x00", "\x1b[2J", "\u202e", "\u2066", "\ud800"])
def test_what_cannot_be_seen_is_shown_by_its_code(seen):
    text = str(element("p", f"a{seen}b"))
    assert seen[0] not in text
    assert f"\\u{ord(seen[0]):04x}" in text


@pytest.mark.parametrize(
    ("tag", "attributes"),
    [
        ("p", {"onclick": "x"}),
        ("p", {"ONCLICK": "x"}),
        ("p", {"a b": "x"}),
        ("a", {"href": "javascript:x"}),
        ("a", {"href": "https://example.org"}),
        ("image", {"href": "data:text/html,x"}),
        ("iframe", {}),
        ("base", {}),
    ],
)
def test_scripts_links_and_other_elements_are_refused(tag, attributes):
    with pytest.raises(ValueError, match="a page"):
        element(tag, **attributes)


def test_scripts_and_styles_hold_trusted_text_alone():
    for tag in ("script", "style"):
        with pytest.raises(ValueError, match="trusted text alone"):
            str(element(tag, "hacked=1"))
    with pytest.raises(ValueError, match="script"):
        str(element("p", Trusted("x")))
    for ends in ("</script>", "</STYLE>", "<!--"):
        with pytest.raises(ValueError, match="ends its own element"):
            Trusted(f"x{ends}y")


def test_json_in_a_script_is_read_back_and_never_ends_it():
    value = {HOSTILE: ["</script>", "<!--", "&amp;", "\u2028"]}
    text = json_text(value).text
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == value
    assert html.unescape(text) == text
