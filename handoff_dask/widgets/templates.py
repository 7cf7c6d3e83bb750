"""The HTML of what notebooks and panels show, as Jinja templates."""

from __future__ import annotations

_SOURCES = {
    "table": """
        <table>
        <thead><tr>
        {% for name in head %}<th style="{{ styles[loop.index0] }}">{{ name }}</th>{% endfor %}
        </tr></thead>
        <tbody>
        {% for row in rows %}
            <tr>
            {% for cell in row %}<td style="{{ styles[loop.index0] }}">{{ cell }}</td>{% endfor %}
            </tr>
        {% endfor %}
        </tbody>
        </table>
        {% if value %}{% include "note" %}{% endif %}
        """,
    "dot": """
        <span style="display:inline-block;width:.65em;height:.65em;border-radius:50%;
        background:{{ colour }};margin-right:.4em"></span>
        {{ label }}
        """,
    "legend": """
        <div style="font-size:12px;display:flex;flex-wrap:wrap;gap:2px 14px;margin-top:3px">
        {% if title %}<b>{{ title }}</b>{% endif %}
        {% for label, colour in colours.items() %}
            <span style="white-space:nowrap">{% include "dot" %}</span>
        {% endfor %}
        {% for value in remarks %}{% include "note" %}{% endfor %}
        </div>
        """,
    "panel": """
        <div style="{{ font }};font-size:13px;line-height:1.4">
        <div><b>{{ title }}</b> <span style="opacity:.75">{{ summary }}</span></div>
        {% for part in parts if part %}<div style="margin-top:6px">{{ part }}</div>{% endfor %}
        </div>
        """,
    "note": """<span style="opacity:.75;font-size:12px">{{ value }}</span>""",
    "warning": """
        <div style="border-left:3px solid {{ colour }};padding:2px 8px;white-space:pre-wrap">
        {{ value }}
        </div>
        """,
    "folded": """
        <details{% if opened %} open{% endif %}>
        <summary style="cursor:pointer">{{ title }}</summary>
        {{ inner }}
        </details>
        """,
    "scrolled": """<div style="overflow:auto;max-height:640px">{{ drawing }}</div>""",
    "beside": """
        <div style="display:flex;gap:28px;flex-wrap:wrap;align-items:flex-start">
        {% for part in parts if part %}<div>{{ part }}</div>{% endfor %}
        </div>
        """,
    "gauge": """
        <div style="display:inline-block;width:90px;height:.7em;border-radius:3px;
        background:rgba(128,128,128,.25)">
        <div style="width:{{ width }};height:100%;border-radius:3px;background:{{ colour }}"></div>
        </div> {{ text }}
        """,
    "bar": """
        <div style="display:flex;height:14px;width:100%;max-width:600px;border-radius:4px;
        overflow:hidden;background:rgba(128,128,128,.2)">
        {% for title, width, colour in stretches %}
            <div title="{{ title }}" style="width:{{ width }};background:{{ colour }}"></div>
        {% endfor %}
        </div>
        """,
}
#: By name. The lines of a template are joined without their indentation.
TEMPLATES = {
    name: "".join(line.strip() for line in source.splitlines()) for name, source in _SOURCES.items()
}
