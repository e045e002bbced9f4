import base64
import html.parser

from clp_jax.evaluation import html as report_html

NASTY = (
    "<script src='https://example.com/x.js'>alert(1)</script> & \"quotes\" <img src=x onerror=y>"
)


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and text, as a browser finds them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def whole(tmp_path):
    (tmp_path / "f.png").write_bytes(b"\x89PNG bytes")
    return report_html.page(
        NASTY,
        [
            report_html.heading(NASTY),
            report_html.lines([NASTY, "second"]),
            report_html.quotation(NASTY),
            report_html.table([{"a": NASTY, NASTY: "x"}, {"a": "one\ntwo", NASTY: "y"}]),
            report_html.figure(tmp_path / "f.png", NASTY),
        ],
    )


def test_whatever_the_texts_hold_is_text(tmp_path):
    reader = Reader(whole(tmp_path))
    assert reader.open == []
    assert {tag for tag, _ in reader.tags} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "ul", "li", "blockquote",
        "div", "table", "tr", "th", "td", "figure", "img", "figcaption",
    }  # fmt: skip
    # title, two headings, list, quotation, header, cell, caption; and once as an attribute
    assert "".join(reader.text).count(NASTY) == 8
    assert [attrs["alt"] for tag, attrs in reader.tags if tag == "img"] == [NASTY]


def test_page_needs_nothing_else(tmp_path):
    reader = Reader(whole(tmp_path))
    sources = [a[k] for _, a in reader.tags for k in ("src", "href", "srcset", "action") if k in a]
    assert sources == ["data:image/png;base64," + base64.b64encode(b"\x89PNG bytes").decode()]
    (policy,) = [a["content"] for _, a in reader.tags if "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = "".join(reader.text)
    assert "@import" not in style
    assert "url(" not in style


def test_table_has_its_cells_in_order():
    rows = [{"b": "1", "a": "2"}, {"a": "4", "b": "3"}]
    cells = [text for text in Reader(report_html.table(rows)).text if text.strip()]
    assert cells == ["b", "a", "1", "2", "3", "4"]
