"""May each thing in a bundle be passed on? From the manifest alone, so whoever has it can ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bundler.attest.terms import UNCHANGED, Terms, terms_of
from bundler.errors import Problem, RecipeError
from bundler.lock import Lock
from bundler.manifest import Manifest, Origin
from bundler.recipe import Recipe
from bundler.value import Value


class Verdict(Value):
    """One thing in a bundle, its licence, and what that says."""

    item: str
    """`models.chat`, `corpora.handbook`, or the name and version of a program."""
    licence: str
    terms: Terms
    texts: tuple[str, ...] = ()
    """Where its licence text lies in the bundle; none: the gap is stated."""
    licence_url: str = ""


def verdicts(manifest: Manifest) -> tuple[Verdict, ...]:
    """Return one verdict for each model, adapter, corpus and program, in a fixed order."""
    paths = sorted(file.path for file in manifest.files)
    found = [_of_origin(item, origin, paths) for item, origin in _origins(manifest)]
    unique = {(one.item, one.licence): one for one in found}
    own = _verdict("bundler", "GPL-3.0-or-later", _below("licenses/bundler/", paths))
    programs = []
    for component in manifest.components:
        name, version = str(component["name"]), str(component["version"])
        below = tuple(
            path
            for file in component.get("licence_files", ())
            for path in paths
            if path.startswith("runtime/") and path.endswith(f"/licenses/{file}")
        )
        programs.append(_verdict(f"{name} {version}", str(component.get("licence") or ""), below))
    return (*unique.values(), own, *programs)


def _origins(manifest: Manifest) -> Iterator[tuple[str, Origin]]:
    for model in manifest.models:
        yield f"models.{model.name}", model.origin
        for one in model.companions:
            yield f"models.{model.name} ({one.kind})", one.origin
    for corpus in manifest.corpora:
        yield f"corpora.{corpus.name}", corpus.origin


def _of_origin(item: str, origin: Origin, paths: list[str]) -> Verdict:
    name, _, kind = item.replace(".", "-", 1).partition(" ")
    folder = f"licenses/{name}-{kind.strip('()')}" if kind else f"licenses/{name}/"
    made = _verdict(item, origin.licence, _below(folder, paths))
    return made.model_copy(update={"licence_url": origin.licence_url})


def _verdict(item: str, licence: str, texts: tuple[str, ...]) -> Verdict:
    terms = terms_of(licence)
    if item.startswith("models.") and UNCHANGED in terms.conditions:
        terms = terms.model_copy(update={
            "answer": "unknown",
            "reason": f"{terms.reason}: unchanged copies only, and converting or quantizing a model "
            "may be a change",
        })  # fmt: skip
    return Verdict(item=item, licence=licence or "unknown", terms=terms, texts=texts)


def _below(folder: str, paths: list[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if path.startswith(folder))


def check_locked(recipe: Recipe, lock: Lock) -> None:
    """Refuse early, before hours of work, what may not be passed on or is unknown.

    Raises:
        RecipeError: as `check_share`.
    """
    words = [
        *((f"models.{n}", recipe.models[n].licence or m.resolution.licence)
          for n, m in lock.models.items() if n in recipe.models),
        *((f"corpora.{n}", recipe.corpora[n].licence or r.licence)
          for n, r in lock.corpora.items() if n in recipe.corpora),
    ]  # fmt: skip
    check_share([_verdict(item, word, ()) for item, word in words])


def check_share(found: Iterable[Verdict]) -> None:
    """Refuse a bundle with anything that may not be passed on.

    Raises:
        RecipeError: there is such a thing; all of them are named. Who wrote the recipe can act.
    """
    problems = [
        Problem(f"may not be passed on: {one.terms.reason}", one.item, _hint(one))
        if one.terms.answer == "no"
        else Problem(f"it is not known whether it may be passed on: {one.terms.reason}",
                     one.item, _hint(one))
        for one in found
        if one.terms.answer in ("no", "unknown")
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems)


def _hint(one: Verdict) -> str:
    if one.item.startswith(("models.", "corpora.")):
        said = f" (its publisher's terms: {one.licence_url})" if one.licence_url else ""
        return (
            f'read its terms{said}; if they are those of an SPDX licence, write licence = "…" in '
            f"[{one.item.partition(' ')[0]}]; else take another, or build without --share"
        )
    return "its package names no licence that is known here; build without --share, for yourself"


def licences_page(manifest: Manifest) -> str:
    """Return `licenses/INDEX.txt`: what is in the bundle, on which terms, and where they lie."""
    lines = [
        f"What is in {manifest.name} {manifest.version}, and whether it may be passed on",
        "",
        "From the licences' own words; no lawyer looked at it. Source code of the programs: the",
        "station (app/) is its own source; where that of all others can be had stands in",
        "runtime/<platform>/licenses/SOURCES.txt.",
    ]
    for one in verdicts(manifest):
        lines += ["", f"{one.item}: {one.licence}", f"  may be passed on: {words(one.terms)}"]
        lines += [f"  - {condition}" for condition in one.terms.conditions]
        lines += [f"  text: {path}" for path in one.texts] or [f"  text: {_gap(one)}"]
    return "\n".join(lines) + "\n"


def words(terms: Terms) -> str:
    """Return the answer for people, with where it is written."""
    said = {"yes": "yes", "conditions": "yes, with conditions", "no": "no", "unknown": "not known"}
    return f"{said[terms.answer]} ({terms.reason})"


def _gap(one: Verdict) -> str:
    return "none came with it" + (
        f"; its publisher has it: {one.licence_url}" * bool(one.licence_url)
    )
