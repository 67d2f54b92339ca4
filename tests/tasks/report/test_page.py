"""A page as a browser reads it: whole, closed to the outside, and safe with names from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import dfkd_tasks.report.page
from dfkd_tasks.report.drawing import IN_THE_DARK, MUTED, OTHER, STUDENT, TEACHER, TEXT
from dfkd_tasks.report.facts import Comparison, Number, RunRow, StudentReport
from dfkd_tasks.report.page import comparison_page, student_page

ADDRESSES = ("src", "srcset", "href", "action", "poster", "data", "style", "background")
SECTIONS = [
    "verdict", "warnings", "classes", "confusion", "calibration", "agreement", "disagreements", "transfer-set",
    "samples", "neighbours", "features", "training", "time", "lineage",
]  # fmt: skip
STYLE = Path(dfkd_tasks.report.page.__file__).with_name("templates") / "page.css"


@dataclass
class Page(HTMLParser):
    """The elements of a page and its visible text."""

    source: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(make_facts: Callable[..., StudentReport]) -> Page:
    return Page(student_page(make_facts()))


def test_page__has_all_sections_in_order_and_the_verdict_first(page: Page) -> None:
    assert [found["id"] for found in page.all("section")] == SECTIONS
    assert {found["href"] for found in page.all("a")} == {f"#{name}" for name in SECTIONS[2:]}
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[:2] == [1, 2]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_page__requests_nothing_and_its_policy_allows_its_style_alone(page: Page) -> None:
    addresses = [value for _, found in page.elements for name, value in found.items() if name in ADDRESSES]
    assert len(addresses) > 80
    assert [value[:80] for value in addresses if not value.startswith(("data:", "#"))] == []
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    [policy] = [found["content"] for found in page.all("meta") if found.get("http-equiv") == "Content-Security-Policy"]
    [style] = re.findall("<style>(.*?)</style>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ")[:3] == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    assert "url(" not in style
    assert len(page.source) < 5_000_000


def test_page__shows_names_from_outside_as_text(page: Page) -> None:
    assert "<script>alert(1)</script>" in page.text
    assert "teacher <b>on</b> data" in page.text
    assert "<script" not in page.source
    assert "snow?man ?☃" in page.text
    assert "\x00" not in page.source
    assert page.all("b") == [{}]


def test_charts__are_whole_in_both_colours_and_have_alternatives(page: Page) -> None:
    images = page.all("img")
    assert all(image["alt"].strip() and image["width"] and image["height"] for image in images)
    charts = [image["src"] for image in images if image["src"].startswith("data:image/svg+xml")]
    dark = [found["srcset"] for found in page.all("source")]
    assert len(charts) == len(dark) == 11
    for address, other in zip(charts, dark):
        assert address != other
        for each in (address, other):
            text = base64.b64decode(each.partition(",")[2]).decode()
            assert ElementTree.fromstring(text).tag.endswith("svg")
            assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|"http://www.w3.org/[^"]*"', "", text)
    assert any(b"$100" in base64.b64decode(address.partition(",")[2]) for address in charts)


def test_ids__are_unique(page: Page) -> None:
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))


def test_figures__have_their_exact_values(page: Page) -> None:
    assert page.all("data") == [{"value": "0.0123456789"}]
    assert "1.00% to 1.50%" in page.text


def test_many_classes__are_listed_in_place_of_matrices(make_facts: Callable[..., StudentReport]) -> None:
    many = Page(student_page(make_facts([f"class {number}" for number in range(1000)])))
    assert "the 20 most frequent confusions" in many.text
    assert "matrix of" not in many.source
    assert [found for found in many.all("details") if "open" in found] == [{"open": ""}] * 3
    assert len(many.source) < 5_000_000


def test_proxy__has_a_banner_and_no_calibration(make_facts: Callable[..., StudentReport]) -> None:
    proxy = Page(student_page(make_facts(is_proxy=True, disagreements=None, transfer_set=None)))
    assert "Only a proxy is known." in proxy.text
    assert "Calibration needs labelled images" in proxy.text
    assert "Make them again with: dfkd run" in proxy.text
    assert [found["id"] for found in proxy.all("section")] == SECTIONS


def test_comparison__links_pages_and_draws_accuracy_against_time_and_size() -> None:
    row = RunRow(
        name="<i>small</i>",
        link="students/small/report.html",
        accuracy=Number(text="90.00%", value=0.9, within="88.00% to 92.00%"),
        interval=(0.88, 0.92),
        seconds=Number(text="3.0 s", value=3.0),
        size=Number(text="2 kB", value=2000.0),
    )
    blind = RunRow(name="blind", is_proxy=True, accuracy=Number(text="50.00%", value=0.5))
    found = Page(comparison_page(Comparison(title="two", columns=(), rows=(row, blind))))
    assert "<i>small</i>" in found.text
    assert [link["href"] for link in found.all("a")] == ["students/small/report.html"]
    alternatives = [image["alt"] for image in found.all("img")]
    assert ["against time" in alternatives[0], "against size" in alternatives[1]] == [True, True]
    assert "proxy: agreement on synthetic images" in found.text


def test_comparison__names_each_run_in_its_charts() -> None:
    rows = tuple(
        RunRow(name=name, accuracy=Number(text="50.00%", value=0.5), seconds=Number(text="1.0 s", value=1.0))
        for name in ("_old", "new")
    )
    text = comparison_page(Comparison(title="two", columns=(), rows=rows))
    charts = [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert charts
    assert all(f">{name}</text>" in chart for chart in charts for name in ("_old", "new"))


def brightness(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours__have_contrast_on_light_and_dark_pages() -> None:
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in colours.keys() - {"page", "card", "line"}:
            assert min(contrast(colours[name], colours[ground]) for ground in ("page", "card")) >= 4.5, name
    for colour in (TEXT, MUTED, TEACHER, STUDENT, OTHER):
        assert contrast(colour, light["page"]) >= 4.5
        assert contrast(IN_THE_DARK[colour], dark["page"]) >= 4.5
