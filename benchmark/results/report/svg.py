"""A matplotlib figure as inline SVG: colours as CSS variables, texts on points, curves that a page can switch off."""

import html
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from benchmark.results.report.series import VARIABLES


@dataclass
class Tips:
    """What points say when pointed at, by the id of their group in the SVG."""

    texts: list[list[str]] = field(default_factory=list)

    def add(self, texts: Iterable[str], series: str = "") -> str:
        """Keep the texts of a group of points, in their order; return its id. They may belong to a `series`."""
        self.texts.append(list(texts))
        return f"{series}-tips{len(self.texts) - 1}"

    def write(self, svg: str) -> str:
        """The SVG with a title on each point."""
        for i, texts in enumerate(self.texts):
            start = next(re.finditer(rf'<g id="[a-z0-9]*-tips{i}">', svg)).start()
            head, *points = re.split(r"(?=<use )", svg[start:], maxsplit=len(texts))
            titled = (
                f'<g class="tip"><title>{html.escape(text)}</title>{point.replace("/>", "/></g>", 1)}'
                for text, point in zip(texts, points, strict=True)
            )
            svg = svg[:start] + head + "".join(titled)
        return svg


def svg(figure: Figure, tips: Tips, prefix: str, label: str) -> str:
    """Inline SVG: CSS variables for colours, titles for tips, ids that differ from figure to figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"^.*?(?=<svg )|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = tips.write(text)
    text = re.sub(r'<g id="series(\d+)-(\w+)">', r'<g id="series\1-\2" class="series \2" data-series="\1">', text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    head = f'<svg role="img" aria-label="{html.escape(label)}" '
    return re.sub(r'^<svg (?:width|height)="[^"]*" |^<svg ', head, text).strip()
