"""A question answered from the library: passages, prompt, the model's words, citations.

`answer` yields what happens as it happens; the page's route turns it into server-sent events.
Leaving the generator early closes the connection to the model, which then stops, and gives the
place at the model to the next in line.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync

from bundler.station.fleet import Fleet
from bundler.station.keywords import keywords, stem
from bundler.station.library import Library
from bundler.station.markup import Source, cited, highlight, render_answer
from bundler.station.models import ModelServer
from bundler.station.passages import Passage
from bundler.station.problems import ModelUnavailable, QuestionTooLong
from bundler.station.prompt import MOST_PASSAGES, Prompt, Turn, estimate_tokens, fit_prompt
from bundler.station.relay import Endpoint, ask, ask_json, server_sent
from bundler.station.retrieval import find_passages

SNAPSHOT_SECONDS = 0.4
"""The page gets the answer rendered this often while it grows; between, plain text."""
TEMPERATURE = 0.2
"""Low: an answer should repeat the passages, not invent."""
SNIPPET_CHARACTERS = 280
NOTHING_FOUND = "Nothing found in the corpora."
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What a person asks, and how it shall be answered."""

    text: str
    history: tuple[Turn, ...] = ()
    use_library: bool = True
    corpus: str = ""
    """Only this corpus; all when empty."""
    answer_unsourced: bool = False
    """Let the model answer from memory when nothing was found."""


class Answerer:
    """Answers questions with one model over one library."""

    def __init__(self, library: Library, fleet: Fleet, model: ModelServer | None) -> None:
        self.library, self.fleet, self.model = library, fleet, model

    async def answer(self, question: Question) -> AsyncGenerator[Event, None]:
        """Yield events: `sources`, `queue`, `waiting`, `text`, `html`, then `done` or `error`."""
        try:
            passages = await self._passages(question)
            if question.use_library and not passages:
                yield {"type": "nothing", "text": NOTHING_FOUND}
                if not question.answer_unsourced:
                    yield {"type": "done", "html": "", "cited": [], "finish": "nothing"}
                    return
            if self.model is None:
                raise ModelUnavailable("This bundle holds no model for chat.")
            async with self.model.turn() as ticket:
                async for position in ticket.positions():
                    yield {"type": "queue", "position": position}
                if self.model.state != "ready":
                    yield {"type": "waiting", "text": "The model is being loaded."}
                endpoint = await self.fleet.ready(self.model)
                prompt = await self._fit(question, passages, endpoint)
                if prompt.passages:
                    yield {"type": "sources", "items": self._items(question.text, prompt.passages)}
                async with aclosing(self._generate(prompt, endpoint)) as events:
                    async for event in events:
                        yield event
        except (ModelUnavailable, QuestionTooLong) as error:
            yield {"type": "error", "text": str(error)}

    async def _passages(self, question: Question) -> list[Passage]:
        if not question.use_library:
            return []
        return await run_sync(
            find_passages, self.library, question.text, MOST_PASSAGES, question.corpus
        )

    async def _fit(
        self, question: Question, passages: Sequence[Passage], endpoint: Endpoint
    ) -> Prompt:
        assert self.model is not None
        count = await token_counter(endpoint, self.model, question, passages)
        context = self.model.entry.context_tokens
        return fit_prompt(question.text, passages, question.history, context, count)

    async def _generate(self, prompt: Prompt, endpoint: Endpoint) -> AsyncGenerator[Event, None]:
        assert self.model is not None
        sources = [source_of(passage) for passage in prompt.passages]
        body = {
            "model": self.model.entry.name,
            "messages": list(prompt.messages),
            "stream": True,
            "max_tokens": prompt.answer_tokens,
            "temperature": TEMPERATURE,
        }
        text, finish, rendered_at, pieces = "", "stop", time.monotonic(), 0
        began = time.monotonic()
        async with ask(endpoint, "POST", "/v1/chat/completions", body) as reply:
            if reply.status != 200:
                raise ModelUnavailable(_refused(reply.status, await reply.whole()))
            async for chunk in server_sent(reply):
                piece, thought, end = _delta(chunk)
                finish = end or finish
                if thought and not text:
                    yield {"type": "waiting", "text": "Thinking…"}
                if not piece:
                    continue
                text += piece
                pieces += 1
                yield {"type": "text", "text": piece}
                if time.monotonic() - rendered_at > SNAPSHOT_SECONDS:
                    yield {"type": "html", "html": render_answer(text, sources)}
                    rendered_at = time.monotonic()
        yield {
            "type": "done",
            "text": text,
            "html": render_answer(text, sources),
            "cited": cited(text, len(sources)),
            "finish": finish,
            "seconds": round(time.monotonic() - began, 2),
            "pieces": pieces,
            "forgotten": prompt.forgotten_turns,
        }

    def _items(self, question: str, passages: Sequence[Passage]) -> list[dict[str, Any]]:
        return [self._item(n, question, passage) for n, passage in enumerate(passages, 1)]

    def _item(self, number: int, question: str, passage: Passage) -> dict[str, Any]:
        corpus = self.library.corpora[passage.corpus].entry
        source = source_of(passage)
        return {
            "number": number,
            "corpus": passage.corpus,
            "corpus_title": corpus.title,
            "path": passage.path,
            "title": passage.heading,
            "snippet": source.snippet,
            "snippet_html": snippet(passage.text, question),
            "passage": [passage.first_block, passage.last_block],
            "href": source.href,
        }


def source_of(passage: Passage) -> Source:
    """Return where a citation of a passage leads."""
    return Source(
        corpus=passage.corpus,
        path=passage.path,
        title=passage.heading,
        snippet=passage.text[:SNIPPET_CHARACTERS],
        first_block=passage.first_block,
        last_block=passage.last_block,
    )


def snippet(text: str, question: str, characters: int = SNIPPET_CHARACTERS) -> str:
    """Return the part of a text with most of the question's words, escaped, these marked."""
    wanted = {stem(word) for word in keywords(question)}
    start = _best_start(text, wanted, characters)
    part = text[start : start + characters]
    if start + characters < len(text) and " " in part:
        part = part.rsplit(" ", 1)[0] + " …"
    marked = highlight(part, lambda word: stem(word.casefold()) in wanted)
    return ("… " if start else "") + marked


def _best_start(text: str, wanted: set[str], characters: int) -> int:
    """Return the sentence start from which most wanted words follow within `characters`."""
    if len(text) <= characters:
        return 0
    starts = [0, *(i + 2 for i in range(len(text) - 2) if text[i : i + 2] in (". ", "! ", "? "))]

    def worth(start: int) -> int:
        return len(wanted & {stem(w) for w in text[start : start + characters].casefold().split()})

    return max(starts, key=lambda start: (worth(start), -start))


async def token_counter(
    endpoint: Endpoint, model: ModelServer, question: Question, passages: Sequence[Passage]
) -> Any:
    """Return a cautious counter of tokens, scaled by the model's own tokenizer if it has one.

    One request measures how many bytes of this very text make a token; asking for each piece would
    cost more than it tells. A tenth is added for parts that are denser than the whole.
    """
    sample = "\n".join(
        [question.text, *(p.text for p in passages), *(t.content for t in question.history)]
    )
    if not model.tokenizes:
        return estimate_tokens
    status, answer = await ask_json(endpoint, "POST", "/tokenize", {"content": sample[:60_000]})
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(tokens, list) or not tokens:
        model.tokenizes = status not in (404, 405)
        return estimate_tokens
    per_byte = 1.1 * len(tokens) / max(1, len(sample[:60_000].encode("utf-8", "replace")))
    return lambda text: int(len(text.encode("utf-8", "replace")) * per_byte) + 2


def _delta(chunk: Mapping[str, Any]) -> tuple[str, bool, str]:
    """Return new text, whether the model is thinking, and why it ended, of one chunk."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        if "error" in chunk:
            raise ModelUnavailable(_message_of(chunk) or "The model reports an error.")
        return "", False, ""
    return (
        str(delta.get("content") or ""),
        bool(delta.get("reasoning_content")),
        str(choice.get("finish_reason") or ""),
    )


def _refused(status: int, body: bytes) -> str:
    try:
        said = _message_of(json.loads(body))
    except ValueError:
        said = ""
    return f"The model refused the question ({said or f'status {status}'})."


def _message_of(value: Any) -> str:
    error = value.get("error") if isinstance(value, dict) else None
    return (
        str(error.get("message", ""))[:300] if isinstance(error, dict) else str(error or "")[:300]
    )
