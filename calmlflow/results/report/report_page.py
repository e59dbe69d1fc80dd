"""The page of a report, a Jinja template for `page.render`."""

PAGE = """\
{% extends "layout" %}
{% from "figure" import figure %}
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
{% block header %}
<p class="quiet">run {{ content.run_id }}, {{ content.created }}, jobs from {{ content.source }}</p>
<nav><a href="#scores">Scores</a>
{% for section, title, figures in sections %}<a href="#{{ section }}">{{ title }}</a>{% endfor %}
{% if worst %}<a href="#worst">Worst jobs</a>{% endif %}
<a href="#facts">Data</a></nav>
{% endblock %}
{% block main %}
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
{{ figure(name, chart, json) }}
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
{% endblock %}
"""
