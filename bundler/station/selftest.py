"""`./start selftest`: does this bundle do on this computer what it did when it was made?

Each model is asked a few things it was asked then; what it finds likely is held against what the
manifest says. Each collection is opened, and an article of it is looked for by its title.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from bundler.station.configuration import Bundle, ModelEntry, read_bundle, this_platform
from bundler.station.library import Corpus, open_corpus
from bundler.station.models import ModelServer
from bundler.station.problems import CorpusUnreadable, ModelUnavailable, StationError
from bundler.station.rechecking import recheck
from bundler.station.relay import Endpoint, ask_json
from bundler.station.start_command import START_COMMAND

MEAN_TOLERANCE_NATS = 0.1
"""Mean difference of log-probabilities. Other processors and accelerators add in another order: a few
hundredths are usual."""
STEP_TOLERANCE_NATS = 0.7
"""Of a single token: half or twice as likely as it was."""
LEAST_COSINE = 0.99
"""Between an embedder's vector then and now."""
LIKELIEST = 10
"""Tokens that a server is asked the likelihood of."""
MOST_STEPS = 64
_LARGEST = 1e300
STEP_SECONDS = 300.0
"""An old processor may have to read a model from a slow stick first."""
MOST_MANIFEST_BYTES = 256 * 2**20
SUGGESTIONS = 50
FAILED = 9
"""Exit code: something was measured and did not pass."""

Reach = Callable[[ModelEntry], Awaitable[Endpoint]]


@dataclass(frozen=True)
class Item:
    """What was found of one model or one collection."""

    name: str
    kind: str
    """`model` or `collection`."""
    passed: bool
    words: str
    seconds: float = 0.0


Say = Callable[[Item], None]


def recorded(root: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return what the manifest says of each model's proof, by (tier, name).

    Raises StationError when there is no manifest that can be read.
    """
    hint = f"The manifest is damaged: {START_COMMAND} repair"
    try:
        with (root / "manifest.json").open("rb") as file:
            document = json.loads(file.read(MOST_MANIFEST_BYTES))
        return {
            (str(model.get("tier", "")), str(model["name"])): {
                **model["proof"]["selftest"],
                "fingerprint": model["proof"].get("fingerprint"),
            }
            for model in document["models"]
            if (model.get("proof") or {}).get("selftest")
        }
    except OSError as error:
        raise StationError(
            f"manifest.json: cannot be read: {error.strerror or error}", hint=hint
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise StationError(f"manifest.json: not a manifest: {error}", hint=hint) from error


async def run(bundle: Bundle, reach: Reach, say: Say) -> tuple[Item, ...]:
    """Test each model and each collection of a bundle, one after the other.

    Args:
        bundle: with the models of one tier only.
        reach: starts a model's server if it does not run, and says where it listens.
        say: told each item as it is known.
    """
    known = await run_sync(recorded, bundle.root)
    items = []
    for entry in bundle.models:
        began = time.monotonic()
        item = await _model(bundle.root, entry, known.get((entry.tier, entry.name)), reach)
        items.append(replace(item, seconds=round(time.monotonic() - began, 1)))
        say(items[-1])
    for corpus in bundle.corpora:
        began = time.monotonic()
        item = await run_sync(_corpus, open_corpus(bundle.root, corpus))
        items.append(replace(item, seconds=round(time.monotonic() - began, 1)))
        say(items[-1])
    return tuple(items)


# -- models ------------------------------------------------------------------------------------------


async def _model(
    root: Path, entry: ModelEntry, known: Mapping[str, Any] | None, reach: Reach
) -> Item:
    try:
        endpoint = await reach(entry)
        if known is None:
            return Item(entry.name, "model", True, "It starts; nothing to compare was recorded.")
        vector = _numbers(known.get("vector"))
        if vector:
            return await _embedder(entry, endpoint, str(known.get("text", "")), vector)
        item = await _writer(entry, endpoint, known)
        return await _with_fingerprint(root, item, endpoint, known)
    except (ModelUnavailable, TimeoutError) as error:
        return Item(entry.name, "model", False, str(error) or "It did not answer in time.")


async def _with_fingerprint(
    root: Path, item: Item, endpoint: Endpoint, known: Mapping[str, Any]
) -> Item:
    """Add what the fingerprint of the unquantized model says, where the bundle has one."""
    record = known.get("fingerprint")
    if not isinstance(record, Mapping):
        return item
    passed, words = await recheck(root, endpoint, record, str(known.get("template_sha256", "")))
    return replace(
        item, passed=item.passed and passed, words=f"{item.words} And {words}.",
    )  # fmt: skip


def _numbers(value: object) -> list[float]:
    """Return a list of finite numbers; an empty one for anything else."""
    if not isinstance(value, list) or len(value) > 65536:
        return []
    # Compared, not converted: a whole number of a thousand digits is none that can be computed with.
    good = all(type(n) in (int, float) and -_LARGEST < n < _LARGEST for n in value)
    return [float(n) for n in value] if good else []


async def _writer(entry: ModelEntry, endpoint: Endpoint, known: Mapping[str, Any]) -> Item:
    prompt, tokens = (
        [int(n) for n in _numbers(known.get(key))] for key in ("prompt_tokens", "tokens")
    )
    logprobs = _numbers(known.get("logprobs"))
    if not prompt or not tokens or len(tokens) != len(logprobs):
        words = "What the manifest has recorded of it cannot be read."
        return Item(entry.name, "model", False, words)
    found = []
    for step, token in enumerate(tokens[:MOST_STEPS]):
        found.append(await _likelihood(endpoint, prompt + tokens[:step], token))
    return judged(entry.name, logprobs[: len(found)], found)


async def _likelihood(endpoint: Endpoint, tokens: list[int], wanted: int) -> float | None:
    """Return the log-probability of a token after others; None when it is not among the likeliest."""
    body = {
        "prompt": tokens, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0,
        "cache_prompt": True,
    }  # fmt: skip
    status, answer = await ask_json(endpoint, "POST", "/completion", body, STEP_SECONDS)
    try:
        (first, *_) = answer["completion_probabilities"]
        likely = {int(one["id"]): float(one["logprob"]) for one in first["top_logprobs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"Its server gave no probabilities (status {status}).") from error
    return likely.get(wanted)


def judged(name: str, expected: Sequence[float], found: Sequence[float | None]) -> Item:
    """Return the verdict on log-probabilities then and now.

    >>> judged("chat", [-0.1, -0.2], [-0.11, -0.2]).passed
    True
    >>> judged("chat", [-0.1, -0.2], [-0.11, None]).passed
    False
    """
    steps = [abs(a - b) for a, b in zip(expected, found, strict=True) if b is not None]
    lost = sum(one is None for one in found)
    mean, worst = (sum(steps) / len(steps), max(steps)) if steps else (0.0, 0.0)
    passed = not lost and mean <= MEAN_TOLERANCE_NATS and worst <= STEP_TOLERANCE_NATS
    words = (
        f"{len(found)} words asked again; their log-probabilities differ by {mean:.3f} on average "
        f"(at most {MEAN_TOLERANCE_NATS:g} is allowed), {worst:.3f} at worst "
        f"({STEP_TOLERANCE_NATS:g})"
    )
    more = f"; {lost} of them it does not find likely any more" if lost else ""
    return Item(name, "model", passed, f"{words}{more}.")


async def _embedder(
    entry: ModelEntry, endpoint: Endpoint, text: str, expected: list[float]
) -> Item:
    status, answer = await ask_json(
        endpoint, "POST", "/v1/embeddings", {"input": text, "model": entry.name}, STEP_SECONDS
    )
    try:
        found = _numbers(answer["data"][0]["embedding"])
    except (KeyError, TypeError, IndexError) as error:
        raise ModelUnavailable(f"Its server gave no vector (status {status}).") from error
    close = cosine(expected, found)
    words = f"Its vector of a known text has a cosine of {close:.4f} to the one of then"
    return Item(entry.name, "model", close >= LEAST_COSINE, f"{words} (at least {LEAST_COSINE:g}).")


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors; 0 for vectors of two lengths or of no length.

    >>> cosine([1.0, 0.0], [2.0, 0.0]), cosine([1.0], [1.0, 0.0])
    (1.0, 0.0)
    """
    lengths = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or not lengths:
        return 0.0
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths


# -- collections ---------------------------------------------------------------------------------------


def _corpus(corpus: Corpus) -> Item:
    name = corpus.entry.name
    if not corpus.available:
        return Item(name, "collection", False, f"It cannot be opened: {corpus.reason}.")
    try:
        hits = corpus.some_titles(1)
        if not hits:
            return Item(name, "collection", not corpus.articles, "It opens; it holds no article.")
        title, path = hits[0].title, hits[0].path
        content = corpus.read(path)
        by_title = path in corpus.suggest(title, SUGGESTIONS)
        by_text = not corpus.has_full_text or corpus.search(title, 0, 1)[0] > 0
    except CorpusUnreadable as error:
        return Item(name, "collection", False, f"{error}.")
    found = content is not None and by_title and by_text
    words = "was found by its title and read" if found else "was not found by its title"
    return Item(name, "collection", found, f"It opens; its article “{title}” {words}.")


# -- the command -------------------------------------------------------------------------------------------


def main(root: Path, words: list[str]) -> int:
    """Run the test from a terminal; return 0, 9 when something did not pass, 2 when it cannot run."""
    parser = argparse.ArgumentParser(
        prog=f"{START_COMMAND} selftest",
        description="Ask each model and collection something known.",
    )
    parser.add_argument("--tier", default="", help="the set of models to test")
    parser.add_argument("--platform", default=this_platform(), help="whose programs to start")
    asked = parser.parse_args(words)
    try:
        bundle = _with_tier(read_bundle(root), asked)
        items = asyncio.run(_alone(bundle, asked.platform))
    except StationError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    wrong = [item.name for item in items if not item.passed]
    end = f"not as it should be: {', '.join(wrong)}" if wrong else "everything works here"
    sys.stdout.write(f"{bundle.name} {bundle.version}: {end}\n")
    if wrong:
        sys.stdout.write(f"\nNext: {START_COMMAND} check   says whether a file is damaged\n")
    return FAILED if wrong else 0


def _with_tier(bundle: Bundle, asked: argparse.Namespace) -> Bundle:
    from bundler.station.probe import probe
    from bundler.station.tiers import named, pick

    if not bundle.tiers or not bundle.models:
        return bundle
    wish = named(bundle.tiers, asked.tier).name if asked.tier else ""
    picked = pick(bundle.tiers, probe(bundle, asked.platform), wish)
    return bundle if picked is None else bundle.for_tier(picked.tier.name)


async def _alone(bundle: Bundle, platform: str) -> tuple[Item, ...]:
    """Run the test with servers of its own, one at a time."""
    running: list[ModelServer] = []

    async def reach(entry: ModelEntry) -> Endpoint:
        while running:
            await running.pop().stop()
        sys.stderr.write(f"starting the model {entry.name} …\n")
        running.append(ModelServer(entry, bundle, platform))
        running[-1].start()
        return await running[-1].ready()

    try:
        return await run(bundle, reach, _show)
    finally:
        while running:
            await running.pop().stop()


def _show(item: Item) -> None:
    mark = "ok" if item.passed else "FAILED"
    sys.stdout.write(f"{mark:6} {item.kind} {item.name}: {item.words} ({item.seconds:g} s)\n")
    sys.stdout.flush()


def as_json(item: Item) -> dict[str, object]:
    """Return an item for the page."""
    return asdict(item)
