"""An executed notebook as a piece of HTML that is safe to publish: nbconvert's `basic` fragment, cleaned.

What it shows may hold texts that a language model wrote, so only known elements and attributes pass. Pictures become
files, widgets and scripts go, and no address outside the site is left: links lead to other pages of the site, else only
their text stays. Formulas are drawn by matplotlib, because MathJax would have to come from somewhere.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts

SHOWN = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]  # the first found is shown: no widgets
ELEMENTS = set(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6"
    " hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
SILENT = {"script", "style", "iframe", "object", "embed", "template", "head", "title", "svg", "math", "noscript"}
ATTRIBUTES = {"class", "id", "href", "src", "alt", "width", "height", "colspan", "rowspan", "scope", "title", "loading"}
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?|nan|NaN")
FORMULA_SIZE = 12.0  # points, drawn; shown relative to the text around it


@dataclass
class Fragment:
    """A notebook's title, its first paragraph, its sections as (anchor, title), and its body without the title."""

    title: str = ""
    lead: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)
    body: str = ""


def fragment(notebook: Any, folder: Path, prefix: str, book: dict, pages: dict[str, str]) -> Fragment:
    """Convert `notebook` (nbformat); its pictures are written to `folder`, which pages address as `prefix`.

    `book` is the run's `book.json` (captions, tables behind figures); `pages` maps notebook file names to pages.
    """
    from bs4 import BeautifulSoup
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in _tags(cell)]
    figures = {entry["name"]: entry for entry in book.get("figures", [])}
    for number, cell in enumerate(notebook.cells):
        for place, output in enumerate(cell.get("outputs", [])):
            _prepare(output, f"cell{number}_{place}", folder, prefix, figures)
    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN
    exporter = HTMLExporter(config=config, template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    clean(soup, pages, folder, prefix)
    for block in soup.select(".text_cell_render, .output_markdown"):
        _draw_formulas(soup, block, folder, prefix)
    _caption_figures(soup, prefix, figures)
    for table in soup.find_all("table"):
        _align_numbers(table)
        table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    return _parts(soup)


def _tags(cell: Any) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _prepare(output: Any, name: str, folder: Path, prefix: str, figures: dict[str, dict]) -> None:
    """Write an output's picture to a file, and keep of a progress bar what its line showed last."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    for kind, suffix in (("image/png", "png"), ("image/jpeg", "jpg")):
        if kind not in output.get("data", {}):
            continue
        stem = output.metadata.get("cilkit")
        stem = stem if stem in figures else name
        artifacts.atomic_write(folder / f"{stem}.{suffix}", base64.b64decode(output.data[kind]))
        output.metadata["filenames"] = {kind: f"{prefix}/{stem}.{suffix}"}
        alternative = figures.get(stem, {}).get("caption") or stem
        output.metadata[kind] = {**output.metadata.get(kind, {}), "alt": alternative}


def clean(soup: Any, pages: dict[str, str], folder: Path, prefix: str) -> None:
    """Let only known elements and attributes pass, and only addresses inside the site."""
    from bs4 import Comment

    for comment in soup.find_all(string=lambda text: isinstance(text, Comment)):
        comment.extract()
    for element in soup.find_all(True):
        if element.decomposed:
            continue
        if element.name in SILENT:
            element.decompose()
        elif element.name not in ELEMENTS:
            element.unwrap()
        else:
            element.attrs = {name: value for name, value in element.attrs.items() if name in ATTRIBUTES}
    for link in soup.find_all("a"):
        _keep_link_inside(link, soup, pages)
    for picture in soup.find_all("img"):
        _keep_picture_inside(picture, folder, prefix)
    for element in soup.find_all(True):
        if element.name not in ("img", "a"):
            element.attrs = {name: value for name, value in element.attrs.items() if name not in ("src", "href")}


def _keep_link_inside(link: Any, soup: Any, pages: dict[str, str]) -> None:
    address = link.get("href", "")
    if "anchor-link" in link.get("class", []):
        link.decompose()
    elif address.startswith("#") and soup.find(id=address[1:]):
        pass
    elif address.split("#")[0].rsplit("/", 1)[-1] in pages and ":" not in address:
        link["href"] = pages[address.split("#")[0].rsplit("/", 1)[-1]]
    else:
        link.unwrap()


def _keep_picture_inside(picture: Any, folder: Path, prefix: str) -> None:
    address = picture.get("src", "")
    if picture.get("alt", "").startswith("No description has been provided"):
        picture["alt"] = ""
    embedded = re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/=\s]+)", address)
    if embedded:
        try:
            content = base64.b64decode(embedded[2])
        except binascii.Error:
            content = b""
        name = f"{hashlib.sha256(content).hexdigest()[:12]}.{embedded[1]}"
        artifacts.atomic_write(folder / name, content)
        picture["src"] = f"{prefix}/{name}"
    elif not address.startswith(f"{prefix}/") or ".." in address:
        picture.replace_with(picture.get("alt", ""))
        return
    picture["loading"] = "lazy"


def _draw_formulas(soup: Any, block: Any, folder: Path, prefix: str) -> None:
    """Replace `$…$` and `$$…$$` in a block's text by pictures (one that mathtext cannot draw stays as its source)."""
    for text in block.find_all(string=FORMULA):
        if text.find_parent(["pre", "code"]):
            continue
        pieces, end = [], 0
        for match in FORMULA.finditer(text):
            pieces += [str(text[end : match.start()]), _formula(soup, match[1] or match[2], folder, prefix)]
            if match[1] and pieces[-1].name == "img":
                pieces[-1]["class"] = "formula block"
            end = match.end()
        text.replace_with(*pieces, str(text[end:]))


def _formula(soup: Any, source: str, folder: Path, prefix: str) -> Any:
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser, math_to_image

    source = " ".join(source.split())
    path = folder / f"formula_{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"
    font = FontProperties(size=FORMULA_SIZE)
    try:
        _, height, depth, _, _ = MathTextParser("path").parse(f"${source}$", dpi=72, prop=font)
        with matplotlib.rc_context({"svg.hashsalt": "cilkit", "mathtext.fontset": "cm"}):
            folder.mkdir(parents=True, exist_ok=True)
            math_to_image(f"${source}$", path, prop=font, format="svg")
    except ValueError:
        code = soup.new_tag("code")
        code.string = source
        return code
    path.write_text(re.sub(r"<metadata>.*?</metadata>", "", path.read_text(), flags=re.DOTALL))
    style = f"height:{height / FORMULA_SIZE:.2f}em;vertical-align:{-depth / FORMULA_SIZE:.2f}em"
    return soup.new_tag(
        "img", attrs={"class": "formula", "src": f"{prefix}/{path.name}", "alt": source, "style": style}
    )


def _caption_figures(soup: Any, prefix: str, figures: dict[str, dict]) -> None:
    """Wrap each of the Book's figures with its caption and a link to the table behind it."""
    by_address = {f"{prefix}/{entry['file']}": entry for entry in figures.values()}
    for picture in soup.find_all("img"):
        entry = by_address.get(picture.get("src"))
        if entry is None or not (entry.get("caption") or entry.get("table")):
            continue
        picture.wrap(soup.new_tag("figure"))
        caption = soup.new_tag("figcaption")
        caption.string = entry.get("caption", "") + " "
        if entry.get("table"):
            link = soup.new_tag("a", attrs={"href": f"{prefix}/{entry['table']}", "class": "data"})
            link.string = "data (CSV)"
            caption.append(link)
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


def _parts(soup: Any) -> Fragment:
    parts = Fragment()
    heading = soup.find("h1")
    if heading:
        parts.title = heading.get_text(" ", strip=True)
        paragraph = heading.find_next("p")
        parts.lead = paragraph.get_text(" ", strip=True) if paragraph else ""
        heading.decompose()
    for number, section in enumerate(soup.find_all("h2"), 1):
        section["id"] = section.get("id") or f"section-{number}"
        parts.sections.append((section["id"], section.get_text(" ", strip=True)))
    parts.body = soup.decode(formatter="minimal")
    return parts
