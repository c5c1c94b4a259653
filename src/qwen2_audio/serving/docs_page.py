"""`/docs`: /openapi.json as a page that needs nothing from elsewhere, not even a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
details { border: 1px solid #8884; border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 3.2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-top: 1px solid #8883; }
"""


def docs_page(openapi: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    info = openapi["info"]
    body = "\n".join((*_operations(openapi), "<h2>Objects</h2>", *_objects(openapi)))
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"\n{body}\n</body></html>\n"
    )


def _operations(openapi: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            summary = escape(operation.get("summary", ""))
            yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> — {summary}</summary>"
            if operation.get("description"):
                yield f"<p>{escape(operation['description'])}</p>"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                yield f"<p>Body, <code>{escape(kind)}</code>: {_type(media['schema'])}</p>"
            yield "<table>"
            for status, response in operation["responses"].items():
                kinds = "; ".join(
                    f"<code>{escape(kind)}</code>: {_type(media.get('schema', {}))}"
                    for kind, media in response.get("content", {}).items()
                )
                yield f"<tr><td><code>{status}</code></td><td>{escape(response['description'])}</td><td>{kinds}</td></tr>"
            yield "</table></details>"


def _objects(openapi: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in openapi.get("components", {}).get("schemas", {}).items():
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p><table>'
        required = schema.get("required", ())
        for field, inner in schema.get("properties", {}).items():
            mark = "" if field in required else " <small>optional</small>"
            text = escape(inner.get("description", ""))
            yield f"<tr><td><code>{escape(field)}</code>{mark}</td><td>{_type(inner)}</td><td>{text}</td></tr>"
        yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, linked to the objects that it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(one) for one in schema[key])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS if key in schema]
    return escape(", ".join((str(schema.get("type", "anything")), *bounds)))


_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
