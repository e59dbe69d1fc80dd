"""The page of a report, a Jinja template."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{{ content.title }}</title>
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
.best { font-weight: 700; }
figure { margin: 16px 0 36px; break-inside: avoid; }
figcaption { color: #444; font-size: 15px; margin: 0 16px; }
.plot { min-height: 320px; }
summary { cursor: pointer; font-weight: 600; margin: 12px 0; }
@media print {
  body { padding: 0; max-width: none; font-size: 13px; } nav { display: none; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  table, .jobs td, .jobs th { font-size: 10px; } .jobs td, .jobs th { padding-right: 6px; }
}
</style>
</head>
<body>
{% macro grid(table) %}
<p class="quiet">{{ table.note }}</p>
<div class="wide"><table class="jobs">
<thead><tr>{% for column in table.columns %}
<th{% if loop.index <= table.words %} class="word"{% endif %}>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for text in row %}<td{% if loop.index <= table.words %} class="word"{% endif %}>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro scores(tables) %}
<div class="wide"><table class="scores">
<thead><tr><th class="word">score on the test jobs</th><th class="word">better</th>
{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
{% for title, rows in tables %}
<tbody><tr class="target"><th colspan="{{ 2 + columns|length }}">{{ title }}</th></tr>
{% for row in rows %}
<tr><td class="word">{{ row.name }}</td><td class="word quiet">{{ row.better }}</td>
{% for cell in row.cells %}<td{% if cell.best %} class="best"{% endif %}>{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
{% endfor %}
</table></div>
{% endmacro %}
<header>
<h1>{{ content.title }}</h1>
<p class="quiet">run {{ content.run_id }}, {{ content.created }}, jobs from {{ content.source }}</p>
<nav><a href="#scores">Scores</a>
{% for section, title, figures in sections %}<a href="#{{ section }}">{{ title }}</a>{% endfor %}
{% if worst %}<a href="#worst">Worst jobs</a>{% endif %}
<a href="#facts">Data</a></nav>
</header>
<main>
<h2 id="scores">Scores</h2>
<p class="verdict">{{ verdict }}</p>
{{ scores(summary) }}
<p class="quiet">Floor: the best that any function of the nine features could score on these very jobs, since jobs with
equal features differ; a score near it cannot get much better. Bold: the best of the predictors.
Accuracy, precision and recall are those of the most probable bin; excess cost, and jobs put too low or too high, are
those of the bin decided on.
{% if has_champion %}The champion was trained on another split and may have seen some of these jobs, which flatters
it.{% endif %}</p>
{% if all_scores %}
<details><summary>All other scores</summary>{{ scores(all_scores) }}</details>
{% endif %}
{% for section, title, figures in sections %}
<h2 id="{{ section }}">{{ title }}</h2>
{% for name, chart, json in figures %}
<figure>
<h3>{{ chart.title }}</h3>
<div class="plot" id="{{ name }}" role="img" aria-label="{{ chart.title }}"></div>
<noscript><p>This plot needs JavaScript; the same is a PNG beside the report.</p></noscript>
<figcaption><b>How to read this.</b> {{ chart.reading }}</figcaption>
<script type="application/json" data-plot="{{ name }}">{{ json }}</script>
</figure>
{% endfor %}
{% endfor %}
{% if worst %}
<h2 id="worst">Worst jobs</h2>
{% for table in worst %}
<details{% if loop.first %} open{% endif %}><summary>{{ table.title }}</summary>{{ grid(table) }}</details>
{% endfor %}
{% endif %}
<h2 id="facts">Data</h2>
{% for table in facts %}
<h3>{{ table.title }}</h3>
{{ grid(table) }}
{% endfor %}
</main>
{% if sections %}
<script>{{ plotly }}</script>
<script>
// One plot after another, so that the page can be scrolled meanwhile.
const waiting = [...document.querySelectorAll("script[data-plot]")];
const options = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d"]};
async function drawNext() {
  const script = waiting.shift();
  if (!script) { document.body.dataset.drawn = "yes"; return; }
  const {data, layout} = JSON.parse(script.textContent);
  await Plotly.newPlot(script.dataset.plot, data, layout, options);
  setTimeout(drawNext);
}
drawNext();
const plots = () => document.querySelectorAll(".js-plotly-plot");
// Two plots to a page.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  plots().forEach(plot => {
    plot.dataset.height = plot.layout.height;
    Plotly.relayout(plot, {width: 680, height: 0.66 * plot.layout.height});
  });
});
addEventListener("afterprint", () => plots().forEach(
  plot => Plotly.relayout(plot, {width: null, height: Number(plot.dataset.height), autosize: true})));
</script>
{% endif %}
</body>
</html>
"""
