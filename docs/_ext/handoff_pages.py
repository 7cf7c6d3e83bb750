"""Sphinx directives for the parts of the pages that are generated from the code."""

from __future__ import annotations

import inspect
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from state_diagram import drawing

import handoff_dask
from handoff_dask.attempts.states import TRANSITIONS

logger = logging.getLogger(__name__)
PACKAGE = Path(handoff_dask.__file__).parent


class Settings(Directive):
    """The settings of the ``handoff`` namespace, from its schema and its defaults."""

    def run(self) -> list[nodes.Node]:
        schema = yaml.safe_load((PACKAGE / "handoff-schema.yaml").read_text(encoding="utf-8"))
        defaults = yaml.safe_load((PACKAGE / "handoff.yaml").read_text(encoding="utf-8"))
        entries = nodes.definition_list()
        for path, about in _leaves(schema["properties"]["handoff"], ("handoff",)):
            name = ".".join(path)
            default = defaults
            for part in path:
                default = default[part]
            kind = about["type"] if isinstance(about["type"], str) else " or ".join(about["type"])
            variable = "DASK_" + "__".join(path).upper().replace("-", "_")
            entry = nodes.definition_list_item()
            target = nodes.target("", "", ids=[name.replace(".", "-")])
            entry += nodes.term("", "", target, nodes.literal(text=name))
            meaning = nodes.definition()
            meaning += nodes.paragraph(text=" ".join(about["description"].split()))
            facts = nodes.paragraph()
            facts += [nodes.Text(f"{kind}, by default "), nodes.literal(text=_yaml(default))]
            facts += [nodes.Text(". Environment: "), nodes.literal(text=variable)]
            meaning += facts
            entry += meaning
            entries += entry
        return [entries]


def _leaves(schema: dict[str, Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Return (path, schema) of each setting below a schema."""
    leaves = []
    for name, about in schema["properties"].items():
        below = (*path, name)
        leaves += _leaves(about, below) if about["type"] == "object" else [(below, about)]
    return leaves


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value).removesuffix("\n").removesuffix("\n...")


class Api(Directive):
    """A table of public names, and below it the reference of each one.

    Each line is a name, or ``name without member, member``; ``name alone`` documents no members.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        names = [line.strip() for line in self.content if line.strip()]
        lines = [
            "```{eval-rst}",
            ".. currentmodule:: handoff_dask",
            "",
            ".. autosummary::",
            "   :nosignatures:",
            "",
        ]
        lines += [f"   {name.split()[0]}" for name in names]
        for name in names:
            lines += ["", *_reference(*name.split(maxsplit=2))]
        box = nodes.Element()
        self.state.nested_parse(StringList([*lines, "```"]), self.content_offset, box)
        return box.children


def _reference(name: str, how: str = "", members: str = "") -> list[str]:
    """Return the reStructuredText that documents a name."""
    thing = attrgetter(name)(handoff_dask)
    if not inspect.isclass(thing):
        kind = "function" if callable(thing) else "data"
        return [f".. auto{kind}:: handoff_dask.{name}"]
    kind = "exception" if issubclass(thing, BaseException) else "class"
    lines = [f".. auto{kind}:: handoff_dask.{name}"]
    if how != "alone":
        # Inherited members only if they are the package's own.
        bases = {b.__name__ for b in thing.__mro__ if not b.__module__.startswith(PACKAGE.name)}
        lines += ["   :members:", f"   :inherited-members: {', '.join(sorted(bases))}"]
    if how == "without":
        lines += [f"   :exclude-members: {members}"]
    return lines


class Life(Directive):
    """The picture of a function's states, drawn from the table of transitions."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", drawing(TRANSITIONS), format="html")]


class ClickHelp(Directive):
    """The output of a command's ``--help``: ``{click-help} dask handoff run``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        import click

        words = self.arguments[0].split()
        module = import_module("handoff_dask.cli")
        command, context = module.handoff, click.Context(module.handoff, info_name="dask handoff")
        context.max_content_width = 84
        for word in words[2:]:
            command = command.commands[word]
            context = click.Context(command, info_name=word, parent=context, max_content_width=84)
        text = f"$ {' '.join(words)} --help\n{command.get_help(context)}"
        return [nodes.literal_block(text, text, language="console")]


def resolve(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Resolve names in their defining module to the public names, which are documented."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    if node.get("refdomain") != "py" or not target.startswith("handoff_dask."):
        return None
    if name not in handoff_dask.__all__ or target == f"handoff_dask.{name}":
        return None
    domain = env.get_domain("py")
    reference: nodes.Node | None = domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"handoff_dask.{name}", node, contnode
    )
    return reference


def hide_constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """Hide the constructor of classes that document no parameters: users do not create them."""
    made = what != "class" or "Parameters\n" in (inspect.getdoc(obj) or "")
    return None if made else ("", None)


def check_complete(app: Sphinx, env: Any) -> None:
    """Warn about public names that the API reference lacks; with -W this fails the build."""
    described = env.get_domain("py").objects
    for name in handoff_dask.__all__:
        if not name.startswith("__") and f"handoff_dask.{name}" not in described:
            logger.warning("handoff_dask.%s is public but not in the API reference", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and hooks."""
    app.add_directive("handoff-api", Api)
    app.add_directive("handoff-life", Life)
    app.add_directive("handoff-settings", Settings)
    app.add_directive("click-help", ClickHelp)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("env-check-consistency", check_complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
