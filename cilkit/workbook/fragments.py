"""An executed notebook as a piece of HTML that is safe to publish: nbconvert's `basic` fragment, cleaned.

What it shows may hold texts that a language model wrote, so only known elements and attributes pass. Pictures become
files, widgets and scripts go, and no address outside the site is left: links lead to other pages of the site, else only
their text stays. Formulas are drawn by matplotlib, because MathJax would have to come from somewhere.

A thousand runs of one notebook share its text, its code and many outputs, so each cell's source and each output is a
piece of its own: converted and cleaned once a process, whatever notebook holds it.
"""

import base64
import binascii
import hashlib
import io
import json
import re
import secrets
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

SHOWN = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]  # the first found is shown: no widgets
ELEMENTS = set(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6"
    " hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
SILENT = {"script", "style", "iframe", "object", "embed", "template", "head", "title", "svg", "math", "noscript"}
ATTRIBUTES = {"class", "id", "alt", "width", "height", "colspan", "rowspan", "scope", "title", "loading"}
ADDRESSES = {"a": {"href"}, "img": {"src"}}
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
NO_FORMULA = "mathjax_ignore"  # the class that MathJax goes by in JupyterLab: a "$" in there is a dollar
NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?|nan|NaN")
FORMULA_SIZE = 12.0  # points, drawn; shown relative to the text around it
KEPT_PIECES = 4096  # those of one notebook, many times over; the least used go first
HERE = f"files-{secrets.token_hex(16)}"  # stands in a piece for the page's folder; no notebook can write it


@dataclass
class Fragment:
    """A notebook's title, its first paragraph, its sections as (anchor, title), and its body without the title."""

    title: str = ""
    lead: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)
    body: str = ""


@dataclass
class _Piece:
    """One source or one output, converted; `title` is that of its first h1, which `html` no longer has."""

    html: str
    files: dict[str, bytes]  # pictures that stood in the text, and drawn formulas
    heading: str = ""  # the first h1 as it stood before the rest
    title: str = ""
    lead: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)


def fragment(notebook: Any, folder: Path, prefix: str, book: dict, pages: dict[str, str]) -> Fragment:
    """Convert `notebook` (nbformat); its pictures are written to `folder`, which pages address as `prefix`.

    `book` is the run's `book.json` (captions, tables behind figures), its figures lie in `folder` already or will;
    `pages` maps notebook file names to pages.
    """
    figures = {entry["name"]: entry for entry in book.get("figures", [])}
    cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in _tags(cell)]
    links, made, body = tuple(sorted(pages.items())), Fragment(), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        for content, figure in _contents(cell, number, folder, figures):
            piece = _piece(json.dumps(content, sort_keys=True), json.dumps(figure, sort_keys=True), links)
            for name, picture in piece.files.items():
                (folder / name).write_bytes(picture)
            titled = bool(made.title)
            if piece.title and not titled:
                made.title, made.lead = piece.title, piece.lead
            body.append(piece.heading * titled + piece.html)
            made.sections += piece.sections
    made.body = _within("\n".join(body)).replace(HERE, prefix)
    return made


def _tags(cell: Any) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _contents(cell: Any, number: int, folder: Path, figures: dict[str, dict]) -> list[tuple[dict, dict | None]]:
    """A cell as cells of one source or one output, without what differs from run to run and does not show.

    Beside each the Book's entry of the figure that it shows, if it does.
    """
    kept = {"cell_type": cell.cell_type, "source": cell.source, "metadata": {}}
    if cell.cell_type != "code":
        kept["metadata"] = {"raw_mimetype": cell.metadata.get("raw_mimetype", "")}
        return [(kept | {"attachments": cell.get("attachments", {})}, None)]
    found: list[tuple[dict, dict | None]] = [(kept | {"outputs": []}, None)]
    unseen = {"cell_type": "code", "source": "", "metadata": {"transient": {"remove_source": True}}}
    for place, output in enumerate(cell.get("outputs", [])):
        figure = _prepare(output, f"cell{number}_{place}", folder, figures)
        found.append((unseen | {"outputs": [output | {"execution_count": None}]}, figure))
    return found


def _prepare(output: Any, name: str, folder: Path, figures: dict[str, dict]) -> dict | None:
    """Write an output's picture to a file, if the Book has not; keep of a progress bar what its line showed last."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    shown, data = None, output.get("data", {})
    for kind in [*data]:  # what is not shown need not make a piece of its own
        if kind != next((best for best in SHOWN if best in data), kind):
            del data[kind]
    for kind, suffix in (("image/png", "png"), ("image/jpeg", "jpg")):
        if kind not in data:
            continue
        stem = output.metadata.get("cilkit")
        entry = figures.get(stem) if isinstance(stem, str) else None
        if entry and entry["file"] == f"{stem}.{suffix}":
            shown = {key: entry.get(key, "") for key in ("file", "caption", "table", "shows", "also")}
        else:
            stem = name
            (folder / f"{stem}.{suffix}").write_bytes(base64.b64decode(data[kind]))
        data[kind] = ""
        output.metadata["filenames"] = {kind: f"{HERE}/{stem}.{suffix}"}
        told = output.metadata.get(kind, {})  # a widget tells what its picture shows
        words = " ".join(filter(None, ((shown or {}).get("caption"), (shown or {}).get("shows"))))
        output.metadata[kind] = {**told, "alt": words or str(told.get("alt", "")) or stem}
    return shown


@lru_cache(maxsize=KEPT_PIECES)
def _piece(content: str, figure: str, links: tuple[tuple[str, str], ...]) -> _Piece:
    """Convert and clean one cell of `_contents` (JSON); addresses of its files begin with HERE."""
    import nbformat
    from bs4 import BeautifulSoup

    cell, files, entry = json.loads(content), {}, json.loads(figure)
    whole = nbformat.from_dict({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]})
    text = _exporter().from_notebook_node(whole)[0].strip()
    soup = BeautifulSoup(text, "html.parser")
    clean(soup, dict(links), files)
    for block in soup.select(".text_cell_render, .output_markdown") if "$" in text else ():
        _draw_formulas(soup, block, files)
    if entry:
        _caption_figure(soup, entry)
    for table in soup.find_all("table"):
        _align_numbers(table)
        for heading in table.find_all("th"):  # what a reader who hears the table is told of each cell
            heading["scope"] = "col" if heading.find_parent("thead") else "row"
        table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    piece = _Piece("", files)
    if cell["cell_type"] == "markdown":
        _note_headings(soup, piece)
    piece.html = soup.decode(formatter="minimal")
    return piece


@cache
def _exporter() -> Any:
    from nbconvert.exporters import HTMLExporter, TemplateExporter
    from nbconvert.filters import Highlight2HTML
    from traitlets.config import Config

    class Exporter(HTMLExporter):
        """Only the template: no step before it concerns one cell, and what comes after it `clean` does too."""

        def _preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
            return nb, resources

        def from_notebook_node(self, nb: Any, resources: Any = None, **kw: Any) -> tuple[str, dict]:
            return TemplateExporter.from_notebook_node(self, nb, self._init_resources(resources or {}), **kw)

    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN
    made = Exporter(config=config, template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    made.register_filter("highlight_code", Highlight2HTML(parent=made))
    return made


def clean(soup: Any, pages: dict[str, str], files: dict[str, bytes]) -> None:
    """Let only known elements and attributes pass, and only addresses inside the site; pictures go into `files`."""
    from bs4 import NavigableString
    from bs4.element import PreformattedString

    for element in soup.find_all(list(SILENT)):
        element.extract()
    links, pictures = [], []
    for element in list(soup.descendants):
        if isinstance(element, PreformattedString):  # a comment, a declaration
            element.extract()
        elif isinstance(element, NavigableString):
            continue
        elif element.name not in ELEMENTS:
            element.unwrap()
        else:
            allowed = ATTRIBUTES | ADDRESSES.get(element.name, set())
            element.attrs = {name: value for name, value in element.attrs.items() if name in allowed}
            if element.get("id", "").startswith("cell-id="):
                del element["id"]
            links += [element] if element.name == "a" else []
            pictures += [element] if element.name == "img" else []
    for link in links:
        _keep_link_inside(link, pages)
    for picture in pictures:
        _keep_picture_inside(picture, files)


def _keep_link_inside(link: Any, pages: dict[str, str]) -> None:
    address = link.get("href", "")
    if "anchor-link" in link.get("class", []):
        link.extract()
    elif address.startswith("#"):
        link["href"] = HERE + address  # whether the page has this place is known when the page is whole
    elif address.split("#")[0].rsplit("/", 1)[-1] in pages and ":" not in address:
        link["href"] = pages[address.split("#")[0].rsplit("/", 1)[-1]]
    else:
        link.unwrap()


def _within(body: str) -> str:
    """Links to places of the same page: kept where there is such a place, else only their text."""
    from bs4 import BeautifulSoup

    if f'href="{HERE}#' not in body:
        return body
    soup = BeautifulSoup(body, "html.parser")
    for link in soup.find_all("a", href=re.compile(f"^{HERE}#")):
        place = link["href"].removeprefix(f"{HERE}#")
        if place and soup.find(id=place):
            link["href"] = f"#{place}"
        else:
            link.unwrap()
    return soup.decode(formatter="minimal")


def _keep_picture_inside(picture: Any, files: dict[str, bytes]) -> None:
    address = picture.get("src", "")
    picture["alt"] = picture.get("alt", "")
    embedded = re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/=\s]+)", address)
    if embedded:
        try:
            content = base64.b64decode(embedded[2])
        except binascii.Error:
            content = b""
        name = f"{hashlib.sha256(content).hexdigest()[:12]}.{embedded[1]}"
        files[name] = content
        picture["src"] = f"{HERE}/{name}"
    elif not address.startswith(f"{HERE}/"):
        picture.replace_with(picture["alt"])
        return
    picture["loading"] = "lazy"


def _draw_formulas(soup: Any, block: Any, files: dict[str, bytes]) -> None:
    """Replace `$…$` and `$$…$$` in a block's text by pictures (one that mathtext cannot draw stays as its source)."""
    for text in block.find_all(string=FORMULA):
        if text.find_parent(["pre", "code"]) or text.find_parent(class_=NO_FORMULA):
            continue
        pieces, end = [], 0
        for match in FORMULA.finditer(text):
            pieces += [str(text[end : match.start()]), _formula(soup, match[1] or match[2], files)]
            if match[1] and pieces[-1].name == "img":
                pieces[-1]["class"] = "formula block"
            end = match.end()
        text.replace_with(*pieces, str(text[end:]))


def _formula(soup: Any, source: str, files: dict[str, bytes]) -> Any:
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser, math_to_image

    source = " ".join(source.split())
    name = f"formula_{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"
    font, drawn = FontProperties(size=FORMULA_SIZE), io.BytesIO()
    try:
        _, height, depth, _, _ = MathTextParser("path").parse(f"${source}$", dpi=72, prop=font)
        with matplotlib.rc_context({"svg.hashsalt": "cilkit", "mathtext.fontset": "cm"}):
            math_to_image(f"${source}$", drawn, prop=font, format="svg")
    except ValueError:
        code = soup.new_tag("code")
        code.string = source
        return code
    files[name] = re.sub(rb"<metadata>.*?</metadata>", b"", drawn.getvalue(), flags=re.DOTALL)
    style = f"height:{height / FORMULA_SIZE:.2f}em;vertical-align:{-depth / FORMULA_SIZE:.2f}em"
    return soup.new_tag("img", attrs={"class": "formula", "src": f"{HERE}/{name}", "alt": source, "style": style})


def _caption_figure(soup: Any, entry: dict) -> None:
    """Wrap the Book's figure with its caption and links to its other kinds of file and to the table behind it."""
    picture = soup.find("img", src=f"{HERE}/{entry['file']}")
    files = {"data (CSV)": entry["table"]} if entry["table"] else {}
    files |= {name.rpartition(".")[2].upper(): name for name in entry["also"] or ()}
    if picture is None or not (entry["caption"] or files):
        return
    picture.wrap(soup.new_tag("figure"))
    caption = soup.new_tag("figcaption")
    caption.string = entry["caption"] + " "
    for words, file in files.items():
        link = soup.new_tag("a", attrs={"href": f"{HERE}/{file}", "class": "data"})
        link.string = words
        if file.endswith(".svg"):  # a picture that a browser would run as a page of this site
            link["download"] = ""
        caption.extend([link, " "])
    picture.insert_after(caption)


def _align_numbers(table: Any) -> None:
    """Mark the cells of columns that hold only numbers (or nothing), so that they stand to the right."""
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    body = [row for row in rows if any(cell.name == "td" for cell in row)]
    if not body or any(len(row) != len(rows[0]) for row in rows):
        return
    if table.thead and not table.thead.get_text(strip=True):
        table.thead.decompose()
        rows = body
    for place in range(len(rows[0])):
        texts = [row[place].get_text(strip=True) for row in body]
        if all(not text or NUMBER.fullmatch(text) for text in texts) and any(texts):
            for row in rows:
                row[place]["class"] = "number"


def _note_headings(soup: Any, piece: _Piece) -> None:
    heading = soup.find("h1")
    if heading:
        paragraph = heading.find_next("p")
        piece.title, piece.lead = (
            heading.get_text(" ", strip=True),
            paragraph.get_text(" ", strip=True) if paragraph else "",
        )
        piece.heading = heading.extract().decode(formatter="minimal")
    for section in soup.find_all("h2", id=True):
        piece.sections.append((section["id"], section.get_text(" ", strip=True)))
