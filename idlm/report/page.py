"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idlm.report import escape
from idlm.report.blocks import Section
from idlm.report.findings import Findings
from idlm.report.style import CSS, SCRIPT
from idlm.report.tables import Table

# Cells longer than this wrap; others stay on one line.
_LONG = 48
# Lines beyond which a table scrolls in its own frame.
_TALL = 16

_TEMPLATE = """\
{% macro table(t) -%}
<div class="table" id="{{ t.name }}">
<h3>{{ t.title|line }}</h3>
<div class="scroll{{ ' tall' if t.rows|length > tall }}{{ ' wide' if t.columns|length > 3 }}" \
tabindex="0" role="region" \
aria-label="{{ t.title|line }}">
<table><thead><tr>
{%- for column in t.columns %}<th scope="col"\
{% if t.numeric[loop.index0] %} class="number"{% endif %}>{{ column.title|line }}</th>{% endfor -%}
</tr></thead><tbody>
{% for row in t.shown %}<tr>
{%- for cell in row %}<td{% if t.numeric[loop.index0] %} class="number"\
{% elif cell|length > long %} class="long"{% endif %}>{{ cell|line }}</td>{% endfor -%}
</tr>
{% endfor %}</tbody></table></div>
{% if t.note %}<p class="note">{{ t.note|line }}</p>{% endif %}
<details class="copy"><summary>Copy as CSV, Markdown or LaTeX</summary>
{% for form, text in forms(t) %}<div><h4>{{ form }}</h4>\
<button type="button" hidden data-copies="{{ t.name }}-{{ loop.index }}" \
aria-label="copy {{ t.title|line }} as {{ form }}">copy</button>
<pre id="{{ t.name }}-{{ loop.index }}" tabindex="0">{{ text|tidy }}</pre></div>
{% endfor %}</details>
</div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'sha256-{{ script_hash }}'; base-uri 'none'; \
form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="idlm {{ version }}">
<title>{{ title|line }}</title>
<style>{{ css|safe }}</style>
</head>
<body>
<header>
<h1>{{ title|line }}</h1>
<p>Generative perplexity (GenPPL) falls when text becomes monotonous, so it stands nowhere here \
without entropy, and models are compared where their entropy is equal.</p>
<nav aria-label="Contents"><ul>
{% for s in sections %}<li><a href="#{{ s.anchor }}">{{ s.short|line }}</a></li>
{% endfor %}<li><a href="#sources">Sources</a></li></ul></nav>
</header>
<main>
{% if headlines %}<section class="findings" aria-label="Findings"><ul>
{% for sentence in headlines %}<li>{{ sentence|line }}</li>
{% endfor %}</ul></section>{% endif %}
{% for s in sections %}
<section id="{{ s.anchor }}">
<h2>{{ s.title|line }}</h2>
{% for note in s.notes %}<p>{{ note|line }}</p>
{% endfor %}
{% if s.pictures %}<div class="figures">
{% for p in s.pictures %}<figure id="{{ p.name }}">
<h3>{{ p.title|line }}</h3>
{{ p.svg|safe }}
{% if p.caption %}<figcaption>{{ p.caption|line }}</figcaption>{% endif %}
</figure>
{% endfor %}</div>{% endif %}
{% for image in s.images %}<figure>
<div class="scroll" tabindex="0" role="region" aria-label="figure">\
<img src="data:image/png;base64,{{ image.data|base64 }}" alt="{{ image.alt|line }}"></div>
<figcaption>{{ image.caption|line }}</figcaption>
</figure>
{% endfor %}
{% for pair in s.pairs %}<div class="pair">
{% for text in pair %}<article class="sample">
<h3>{{ text.title|line }}</h3>
<p class="note">{{ text.about|line }}</p>
<pre dir="auto" tabindex="0">{{ text.text|tidy }}</pre>
{% if text.rest %}<p class="note">… and {{ text.rest }} more characters</p>{% endif %}
</article>
{% endfor %}</div>
{% endfor %}
{% for t in s.tables %}{{ table(t) }}
{% endfor %}
{% for t in s.folded %}<details><summary>{{ t.title|line }} ({{ t.rows|length }} rows)</summary>
{{ table(t) }}
</details>
{% endfor %}
</section>
{% endfor %}
<section id="sources">
<h2>Sources</h2>
{{ table(sources) }}
{% if absent %}<p>Not in this report, since no file given has it: {{ absent|join(", ")|line }}.</p>\
{% endif %}
{% if left_out %}<p>Left out:</p><ul>
{% for name, why in left_out %}<li><code>{{ name|line }}</code>: {{ why|line }}</li>
{% endfor %}</ul>{% endif %}
</section>
</main>
<footer>Made by idlm {{ version }}. This page needs no other file and no network.</footer>
<script>{{ script|safe }}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        title: its heading.
        headlines: sentences at the top.
        sections: its parts.
        sources: the table of the files it was made from.
        found: what they hold.
    """

    title: str
    headlines: Sequence[str]
    sections: Sequence[Section]
    sources: Table
    found: Findings


def render(page: Page) -> str:
    """The HTML of a page; everything that comes from files is escaped.

    Args:
        page: what it shows.
    """
    import jinja2

    from idlm import __version__

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "line": escape.one_line,
        "tidy": escape.tidy,
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
    }
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    return environment.from_string(_TEMPLATE).render(
        title=page.title,
        headlines=page.headlines,
        sections=page.sections,
        sources=page.sources,
        absent=_absent(page.found),
        left_out=page.found.left_out,
        forms=_forms,
        version=__version__,
        css=CSS,
        script=SCRIPT,
        script_hash=digest,
        long=_LONG,
        tall=_TALL,
    )


def _forms(table: Table) -> list[tuple[str, Any]]:
    return [("CSV", table.csv()), ("Markdown", table.markdown()), ("LaTeX", table.latex())]


def _absent(found: Findings) -> list[str]:
    kinds = {
        "a frontier": found.frontiers,
        "samples": found.samples,
        "a training log": found.trainings,
        "toys": found.toys,
        "the oracle language": found.oracle,
        "speed": found.speed,
        "published numbers": found.published,
    }
    return [name for name, items in kinds.items() if not items]
