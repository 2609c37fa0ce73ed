"""Python, the libraries bundler needs, and the engines: are they here, and what do they run on?"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from bundler.doctor.findings import Finding
from bundler.doctor.loading import compiled_libraries
from bundler.errors import BundlerError
from bundler.machine.values import Card
from bundler.plugins import Plugins

LEAST_PYTHON = (3, 11)
# llama.cpp's system info names each feature that its CPU code was built with: `AVX2 = 1`.
_FEATURE = re.compile(r"\b([A-Z][A-Z0-9_]*) = 1\b")
_WORTH_SAYING = ("AVX512", "AVX2", "AVX", "FMA", "F16C", "NEON", "DOTPROD", "SVE", "REPACK")

EngineAnswers = Mapping[str, Mapping[str, Any] | BundlerError]
"""What each engine says of itself here (`build`, `devices`), or why it says nothing."""


def ask_engines(plugins: Plugins, environment: Mapping[str, str]) -> EngineAnswers:
    """Ask every engine that can be asked what it runs on here; each answers from a child process."""
    answers: dict[str, Mapping[str, Any] | BundlerError] = {}
    for name, engine in plugins.engines.items():
        ask = getattr(engine, "devices", None)
        if ask is None:
            continue
        try:
            answers[name] = ask(environment)
        except BundlerError as error:
            answers[name] = error
    return answers


def software(answers: EngineAnswers, cards: Sequence[Card]) -> Iterator[Finding]:
    """Yield a finding for Python, for the libraries and for each engine."""
    yield _python()
    yield _libraries()
    yield from compiled_libraries()
    for name, answer in sorted(answers.items()):
        yield from engine_findings(name, answer, cards)


def _python() -> Finding:
    here = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= LEAST_PYTHON:
        return Finding(topic="software", name="Python", state="good", said=here)
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding(
        topic="software", name="Python", state="missing", said=f"{here}; {least} is needed",
        remedy=f"install Python {least} or later and bundler into it", exit_code=1,
    )  # fmt: skip


def _libraries() -> Finding:
    """Hold what is installed against what bundler's own metadata asks for."""
    from packaging.requirements import Requirement

    try:
        texts = requires("bundler") or ()
    except PackageNotFoundError:
        said = "bundler runs from a folder that is not installed, so what it needs is not on record"
        return Finding(topic="software", name="libraries", state="note", said=said)
    wanted = [Requirement(text) for text in texts]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [word for one in wanted if (word := _wrong(one.name, str(one.specifier)))]
    if not wrong:
        said = f"all {len(wanted)} that bundler needs, in versions it was made for"
        return Finding(topic="software", name="libraries", state="good", said=said)
    return Finding(
        topic="software", name="libraries", state="missing", said="; ".join(wrong),
        remedy="install bundler again, which brings them: pip install --upgrade bundler",
        exit_code=1,
    )  # fmt: skip


def _wrong(name: str, specifier: str) -> str:
    from packaging.specifiers import SpecifierSet

    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    if SpecifierSet(specifier).contains(found, prereleases=True):
        return ""
    return f"{name} {found} is here, {specifier} is needed"


def engine_findings(
    name: str, answer: Mapping[str, Any] | BundlerError, cards: Sequence[Card]
) -> Iterator[Finding]:
    """Yield what an engine is, and whether it uses the accelerators that drivers show."""
    if isinstance(answer, BundlerError):
        problem = answer.problems[0]
        yield Finding(
            topic="software", name=name, state="warning",
            said=f"cannot be used: {str(problem).splitlines()[0]}",
            remedy=problem.hint or "install it again; plans can be made without it, models cannot",
        )  # fmt: skip
        return
    build = str(answer["build"])
    devices = [device for device in answer["devices"] if device["is_gpu"]]
    names = ", ".join(f"{d['description'] or d['name']} ({d['kind']})" for d in devices)
    yield Finding(
        topic="software", name=name, state="good",
        said=f"{build.partition(' | ')[0]}; {_features(build)}; "
        f"runs on {names or 'the processor'}",
    )  # fmt: skip
    yield from _unused_cards(name, devices, cards)


def _features(build: str) -> str:
    found = set(_FEATURE.findall(build))
    worth = [word for word in _WORTH_SAYING if word in found]
    return f"processor code with {', '.join(worth)}" if worth else "plain processor code"


def _unused_cards(
    name: str, devices: Sequence[Mapping[str, Any]], cards: Sequence[Card]
) -> Iterator[Finding]:
    """Warn of an accelerator that its driver shows and this engine does not use."""
    switch = {"cuda": "GGML_CUDA", "rocm": "GGML_HIP", "vulkan": "GGML_VULKAN",
              "metal": "GGML_METAL"}  # fmt: skip
    if devices:
        return
    for card in cards:
        yield Finding(
            topic="software", name=card.name, state="warning",
            said=f"{name} was built without {card.kind}: it is not used "
            f"({card.driver or card.how})",
            remedy=f"CMAKE_ARGS=-D{switch[card.kind]}=on pip install --force-reinstall "
            "--no-binary llama-cpp-python llama-cpp-python",
        )  # fmt: skip
