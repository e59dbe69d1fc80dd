"""What all pages share: their look, their plots, and that they load nothing from anywhere."""

from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from calmlflow.results.plots.charts import Chart
from calmlflow.results.plots.draw_plotly import TITLE_HEIGHT, figure

LAYOUT = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{{ title }}</title>
<style>
body { margin: 0 auto; max-width: 1080px; padding: 24px; color: #222; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 22px; margin: 48px 0 8px; padding-top: 8px; border-top: 2px solid #0072B2; }
h3 { font-size: 17px; margin: 24px 0 4px; }
p { margin: 4px 0 12px; }
.quiet { color: #5b5b5b; font-size: 14px; overflow-wrap: anywhere; }
.verdict { margin: 16px 0; padding: 12px 16px; border-left: 4px solid #0072B2; background: #f2f7fb; }
nav { font-size: 14px; } nav a { margin-right: 16px; } a { color: #005a8f; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin-bottom: 12px; }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { vertical-align: bottom; color: #5b5b5b; font-weight: 600; }
tr.target th { color: #222; text-align: left; padding-top: 14px; font-size: 15px; }
td.quiet { font-size: inherit; }
td.word, th.word { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.scores { width: 100%; } .jobs td, .jobs th { font-size: 13px; padding-right: 10px; }
.paired .word { overflow-wrap: normal; } .paired .word:last-child { padding-left: 12px; white-space: nowrap; }
.best, td.better, td.worse { font-weight: 700; } td.better { color: #005a8f; } td.worse { color: #a84300; }
figure { margin: 16px 0 36px; break-inside: avoid; }
figcaption { color: #444; font-size: 15px; margin: 0 16px; }
.plot { min-height: 320px; }
summary { cursor: pointer; font-weight: 600; margin: 12px 0; }
@media print {
  body { padding: 0; max-width: none; font-size: 13px; } nav { display: none; } .plot { min-height: 0; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  table, .jobs td, .jobs th { font-size: 10px; } .jobs td, .jobs th { padding-right: 6px; }
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% block header %}{% endblock %}
</header>
<main>
{% block main %}{% endblock %}
</main>
{% if has_plots %}
<script>{{ plotly }}</script>
<script>
// One plot after another, so that the page can be scrolled meanwhile.
const waiting = [...document.querySelectorAll("script[data-plot]")];
const options = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d"]};
// A plot in a window that changes its size takes the height of its place.
const reserve = (place, share) => { place.style.height = `${share * place.dataset.height}px`; };
async function drawNext() {
  const script = waiting.shift();
  if (!script) { document.body.dataset.drawn = "yes"; return; }
  const {data, layout} = JSON.parse(script.textContent);
  const place = document.getElementById(script.dataset.plot);
  place.dataset.height = layout.height;
  reserve(place, 1);
  await Plotly.newPlot(place, data, layout, options);
  setTimeout(drawNext);
}
drawNext();
const plots = () => document.querySelectorAll(".js-plotly-plot");
// Two plots to a page.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  plots().forEach(plot => {
    reserve(plot, 0.66);
    Plotly.relayout(plot, {width: 680, height: 0.66 * plot.dataset.height});
  });
});
addEventListener("afterprint", () => plots().forEach(plot => {
  reserve(plot, 1);
  Plotly.relayout(plot, {width: null, height: Number(plot.dataset.height), autosize: true});
}));
</script>
{% endif %}
</body>
</html>
"""

FIGURE = """\
{% macro figure(name, chart, json) %}
<figure>
<h3>{{ chart.title }}</h3>
<div class="plot" id="{{ name }}" role="img" aria-label="{{ chart.title }}"></div>
<noscript><p>This plot needs JavaScript; the same is a PNG beside this page.</p></noscript>
<figcaption><b>How to read this.</b> {{ chart.reading }}</figcaption>
<script type="application/json" data-plot="{{ name }}">{{ json }}</script>
</figure>
{% endmacro %}
"""


def render(template: str, title: str, has_plots: bool, **values: Any) -> str:
    """Render a template that extends ``layout`` and draws with the macro of ``figure``, about 4.8 MB with plots.

    Texts are shown as they are, and never read as HTML.
    """
    templates = DictLoader({"layout": LAYOUT, "figure": FIGURE, "page": template})
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    plotly = Markup(get_plotlyjs() if has_plots else "")  # noqa: S704 - plotly's own file
    return environment.get_template("page").render(title=title, has_plots=has_plots, plotly=plotly, **values)


def figure_json(chart: Chart, panel_height: int | None = None) -> Markup:
    """A figure without its title, which the page shows itself: there it is wrapped where the page is narrow.

    ``panel_height`` is in pixels; without it, it follows from the number of rows of panels.
    """
    drawn = figure(chart)
    drawn.layout.title = None
    drawn.layout.height -= TITLE_HEIGHT
    drawn.layout.margin.t -= TITLE_HEIGHT
    if panel_height:
        drawn.layout.height = drawn.layout.margin.t + panel_height * chart.rows
    # Plotly writes < as \\u003c, so no text can end the script it stands in.
    return Markup(drawn.to_json())  # noqa: S704
