import re
from html.parser import HTMLParser

from unicl.evaluate.page import to_html

VOID = {"meta", "img", "br", "link", "input"}


class Tree(HTMLParser):
    """Checks that every element is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_needs_nothing_from_outside(report):
    page = to_html(report)
    tree = Tree()
    tree.feed(page)
    assert tree.wrong == []
    assert tree.open == []
    for tag, attributes in tree.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_every_number_with_its_interval(report):
    page = to_html(report)
    for result in report.results:
        assert result.title.replace("'", "&#39;") in page
        for score in result.scores:
            assert score.name in page
            if score.unit == "percent":
                assert f"{100 * score.low:.1f} % to {100 * score.high:.1f} %" in page


def test_titles_and_names_are_escaped(report):
    page = to_html(report)
    assert "runs/a | &lt;b&gt;" in page
    assert "<b>" not in re.sub(r'<b style="left', "", page)


def test_mistakes_show_their_pictures_once_each_as_jpeg(report):
    page = to_html(report)
    wanted = {m.id for r in report.results for several in r.mistakes.values() for m in several if m.image is not None}
    assert wanted
    assert page.count("data:image/jpeg;base64,") >= len(wanted)
    for name in wanted:
        assert f'title="{name}"' in page


def test_images_left_out_are_listed_with_their_reasons(report):
    page = to_html(report)
    assert "broken.png" in page
    assert report.unreadable[0].reason in page


def test_the_page_is_the_same_again(report):
    assert to_html(report) == to_html(report)
