"""Render HTML pages that load nothing from anywhere, with interactive plots."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from calmlflow.hst.ladder import LADDER
from calmlflow.results.plots.theme import TITLE_HEIGHT

TITLES = {"mem_bin": "Memory bin", "memory": "Memory", "wallclock": "Wallclock"}


def render(template: str, title: str, has_plots: bool, **values: Any) -> str:
    """Render a template of this package, about 4.8 MB with plots; texts are never read as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = _figure_json
    environment.filters["thousands"] = "{:,}".format
    plotly = Markup(get_plotlyjs() if has_plots else "")  # noqa: S704 - plotly's own file
    return environment.get_template(template).render(
        title=title, plotly=plotly, titles=TITLES, ladder=LADDER.version, **values
    )


def _figure_json(figure: go.Figure) -> Markup:
    """A figure without its title, which the page shows itself: there it is wrapped where the page is narrow."""
    drawn = figure.to_dict()
    layout = drawn["layout"]
    del layout["title"], layout["meta"]
    layout["height"] -= TITLE_HEIGHT
    layout["margin"]["t"] -= TITLE_HEIGHT
    # Plotly writes < as \\u003c, so no text can end the script it stands in.
    return Markup(to_json_plotly(drawn))  # noqa: S704
