"""What runs and what does not, in words for the person in front of the screen."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.station.configuration import Bundle
from bundler.station.fleet import Fleet
from bundler.station.library import Library
from bundler.station.models import ModelServer
from bundler.station.problems import CorpusUnreadable
from bundler.station.tiers import Picked

CHAT_ROLES = ("chat", "code")
EXAMPLES = 4
LANGUAGES = {
    "ara": "Arabic", "deu": "German", "eng": "English", "fas": "Persian", "fra": "French",
    "hin": "Hindi", "ita": "Italian", "jpn": "Japanese", "nld": "Dutch", "pol": "Polish",
    "por": "Portuguese", "rus": "Russian", "spa": "Spanish", "swa": "Swahili", "tur": "Turkish",
    "ukr": "Ukrainian", "zho": "Chinese",
}  # fmt: skip
"""Names of the languages corpora mostly come in (ISO 639-3); others are shown by their code."""


@dataclass(frozen=True)
class Example:
    """A question offered on the empty page."""

    label: str
    question: str


@dataclass(frozen=True)
class Status:
    """A snapshot of the station."""

    bundle: str
    version: str
    instance: str
    """Names this bundle in this place; lets a second start find the first."""
    chat: str
    """`ready`, `starting`, `off`."""
    chat_reason: str
    line: str
    """The status line: model, articles, offline."""
    warnings: tuple[str, ...]
    models: tuple[dict[str, Any], ...]
    corpora: tuple[dict[str, Any], ...]
    tier: dict[str, Any] | None = None
    """Which set of models is served, why, and which others there are."""

    def as_json(self) -> dict[str, Any]:
        """Return it as the page's script gets it."""
        return {
            "bundle": self.bundle, "version": self.version, "instance": self.instance,
            "chat": self.chat, "chat_reason": self.chat_reason, "line": self.line,
            "warnings": list(self.warnings),
            "models": list(self.models), "corpora": list(self.corpora),
            "tier": self.tier,
        }  # fmt: skip


class StatusLine:
    """Makes snapshots, and example questions from what the corpora hold."""

    def __init__(
        self, bundle: Bundle, library: Library, fleet: Fleet, picked: Picked | None = None
    ) -> None:
        self.bundle, self.library, self.fleet = bundle, library, fleet
        self.picked = picked
        self.instance = instance_of(bundle)

    def now(self) -> Status:
        """Return the present state."""
        chat = self.fleet.first(CHAT_ROLES)
        state, reason = _chat_state(chat)
        return Status(
            bundle=self.bundle.name,
            version=self.bundle.version,
            instance=self.instance,
            chat=state,
            chat_reason=reason,
            line=" · ".join(
                part for part in (_model_words(chat, state), self._articles(), "offline") if part
            ),
            warnings=tuple(self._warnings()),
            models=tuple(_model_row(server) for server in self.fleet.servers.values()),
            corpora=tuple(self._corpus_rows()),
            tier=self.picked.as_json() if self.picked else None,
        )

    def examples(self) -> list[Example]:
        """Return a few questions to begin with: the bundle's own, else made of articles' titles."""
        if self.bundle.questions:
            chosen = random.sample(self.bundle.questions, min(EXAMPLES, len(self.bundle.questions)))
            return [Example(question, question) for question in chosen]
        return [Example(title, f"What is {_mid_sentence(title)}?") for title in self._titles()]

    def _titles(self) -> list[str]:
        titles: list[str] = []
        corpora = self.library.available
        random.shuffle(corpora)
        for corpus in corpora[:EXAMPLES]:
            wanted = max(2, -(-EXAMPLES // len(corpora)))
            try:
                titles += [hit.title for hit in corpus.some_titles(wanted) if len(hit.title) < 50]
            except CorpusUnreadable:
                continue  # The warnings say so; other corpora may have titles.
        return titles[:EXAMPLES]

    def _articles(self) -> str:
        count = self.library.articles
        return f"{count:,} article{'' if count == 1 else 's'}" if self.library.corpora else ""

    def _warnings(self) -> list[str]:
        if not _can_be_read(self.bundle.root / "station.json"):
            return ["The drive with this bundle cannot be read. Put it back in, then start again."]
        unfinished = self.bundle.unfinished()
        return [unfinished] * bool(unfinished) + self._about_the_set() + [
            f"The model {server.entry.name}: {server.fallback}"
            for server in self.fleet.servers.values()
            if server.fallback and server.state == "ready"
        ] + [
            f"{corpus.entry.title}: {corpus.reason}." if corpus.available
            else f"{corpus.entry.title} is unavailable: {corpus.reason}."
            for corpus in self.library.corpora.values() if corpus.reason
        ]  # fmt: skip

    def _about_the_set(self) -> list[str]:
        """Say that the computer is small for the models, or which set to try when one failed."""
        if self.picked is None:
            return []
        found = [self.picked.warning] if self.picked.warning else []
        failed = [one.entry.name for one in self.fleet.servers.values() if one.state == "failed"]
        if failed and self.picked.next_name:
            found.append(
                f"The model {failed[0]} did not start. The set made for smaller computers may: "
                f"start again with --tier {self.picked.next_name}."
            )
        return found

    def _corpus_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "name": corpus.entry.name, "title": corpus.entry.title,
                "language": LANGUAGES.get(corpus.entry.language, corpus.entry.language),
                "articles": corpus.articles,
                "available": corpus.available, "full_text": corpus.has_full_text,
                "reason": corpus.reason, "main_path": corpus.main_path,
            }
            for corpus in self.library.corpora.values()
        ]  # fmt: skip


def instance_of(bundle: Bundle) -> str:
    """Return what names this bundle in this place."""
    text = f"{bundle.name}\0{bundle.version}\0{bundle.root.resolve()}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _chat_state(chat: ModelServer | None) -> tuple[str, str]:
    if chat is None:
        return "off", "This bundle holds no model for chat."
    if chat.state in ("failed", "stopped"):
        return "off", chat.reason
    if chat.state == "ready" or chat.entry.residency == "on-demand":
        return "ready", ""
    return "starting", chat.reason or "The model is being loaded."


def _model_words(chat: ModelServer | None, state: str) -> str:
    if chat is None:
        return "No model: search and reading only"
    name = " ".join(part for part in ("Model", chat.entry.name, chat.entry.quant) if part)
    if state == "off":
        return f"{name} is off"
    if state == "starting":
        return f"{name} is starting"
    return f"{name} on {chat.device}" if chat.device else name


def _model_row(server: ModelServer) -> dict[str, Any]:
    return {
        "name": server.entry.name, "role": server.entry.role, "quant": server.entry.quant,
        "context_tokens": server.entry.context_tokens, "parallel": server.entry.parallel,
        "state": server.state, "reason": server.reason, "device": server.device,
        "fallback": server.fallback,
        "busy": server.slots.busy, "waiting": server.slots.waiting,
    }  # fmt: skip


def _mid_sentence(title: str) -> str:
    """Return a title as it stands inside a sentence: `Solar still` → `solar still`, `CPR` as it is."""
    ordinary = title[:1].isupper() and title[1:2].islower() and title[1:] == title[1:].lower()
    return title[0].lower() + title[1:] if ordinary else title


def _can_be_read(path: Path) -> bool:
    """Tell whether a file is there: a drive that was pulled out gives all kinds of errors."""
    try:
        with path.open("rb") as stream:
            return bool(stream.read(1))
    except OSError:
        return False
