"""The pages placed in a bundle: a README for the person at the far end, a report for the curious.

Both are single files without scripts or anything remote; the report says only what was measured
or computed in this build.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bundler.drawing.memory_bars import memory_bars
from bundler.drawing.memory_svg import memory_svg
from bundler.manifest import Manifest
from bundler.plan import Plan, TierPlan
from bundler.value import format_bytes


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bundler", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bytes"] = format_bytes
    environment.filters["day"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime(
        "%-d %B %Y"
    )
    return environment


def report_html(manifest: Manifest, plan: Plan) -> str:
    """Return the report: models with their proofs, memory, corpora with coverage, components."""
    pictures = {tier.name: _picture(tier, number) for number, tier in enumerate(plan.tiers)}
    template = _environment().get_template("report.html.j2")
    return template.render(manifest=manifest, plan=plan, pictures=pictures)


def _picture(tier: TierPlan, number: int) -> Markup:
    """Return who lies where in a machine's memory, as a drawing inside the page."""
    machine = tier.target.title or tier.target.name
    drawing = memory_svg(memory_bars(tier), identity=f"memory{number}", machine=machine)
    return Markup(drawing)  # noqa: S704 - every text in it is escaped where it is written


def readme_html(manifest: Manifest) -> str:
    """Return the page that tells a person at the far end how to start, check and read."""
    return _environment().get_template("README.html.j2").render(manifest=manifest)
