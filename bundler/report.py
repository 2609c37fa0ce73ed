"""The pages placed in a bundle: a README for the person at the far end, a report for the curious.

Both are single files without scripts or anything remote; the report says only what was measured
or computed in this build.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bundler.attest.verdicts import verdicts, words
from bundler.drawing.memory_bars import memory_bars
from bundler.drawing.memory_svg import memory_svg
from bundler.manifest import BundledModel, Manifest
from bundler.measured import Device
from bundler.plan import Budget, Plan, TierPlan
from bundler.value import format_bytes, format_size


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
    environment.filters["needed"] = lambda budget: _amount(budget, budget.used_bytes)
    environment.filters["there_is"] = lambda budget: _amount(budget, budget.limit_bytes)
    environment.filters["counted_in_peak"] = _counted_in_peak
    environment.filters["predicted_for_peak"] = _predicted_for_peak
    environment.filters["day"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime(
        "%-d %B %Y"
    )
    return environment


def _amount(budget: Budget, count: int | None) -> str:
    """Write a memory in binary units; room on disks and downloads as their makers do."""
    if count is None:
        return "no limit"
    return format_bytes(count) if budget.name.startswith(("RAM", "VRAM")) else format_size(count)


def _counted_in_peak(device: Device) -> str:
    """Say what a measured peak counts: a driver sees the process, a backend its own buffers."""
    if device.peak_memory_source.startswith("nvml"):
        return "all that the process holds, by the driver's account"
    return "weights, KV cache and compute buffers, by llama.cpp's own account"


def _predicted_for_peak(model: BundledModel) -> int:
    """Return what was predicted of the parts that the peak counts."""
    memory, proof = model.predicted_memory, model.proof
    whole = proof is not None and proof.device.peak_memory_source.startswith("nvml")
    return memory.total_bytes if whole else memory.total_bytes - memory.overhead_bytes


def report_html(manifest: Manifest, plan: Plan) -> str:
    """Return the report: models with their proofs, memory, corpora with coverage, components."""
    pictures = {tier.name: _picture(tier, number) for number, tier in enumerate(plan.tiers)}
    template = _environment().get_template("report.html.j2")
    return template.render(
        manifest=manifest, plan=plan, pictures=pictures, verdicts=verdicts(manifest), words=words
    )


def _picture(tier: TierPlan, number: int) -> Markup:
    """Return who lies where in a machine's memory, as a drawing inside the page."""
    machine = tier.target.title or tier.target.name
    drawing = memory_svg(memory_bars(tier), identity=f"memory{number}", machine=machine)
    return Markup(drawing)  # noqa: S704 - every text in it is escaped where it is written


def readme_html(manifest: Manifest) -> str:
    """Return the page that tells a person at the far end how to start, check and read."""
    return _environment().get_template("README.html.j2").render(manifest=manifest)
