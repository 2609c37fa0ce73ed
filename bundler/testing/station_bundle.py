"""Small bundles for tests of the station: real ZIM files, the fake model server as runtime.

`make_zim` writes what bundler's own corpora look like: text blocks carry ids `p1`, `p2`… and
headings carry ids too.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from libzim.writer import Creator, Hint, Item, StringProvider

Article = Mapping[str, Sequence[str]]
"""Section title → paragraphs; the section named "" comes before the first heading."""

HANDBOOK: Mapping[str, Article] = {
    "Boiling": {
        "": [
            "Boiling is a water treatment that kills disease-causing germs by heating the water to "
            "a full rolling boil.",
            "It is the most reliable way to kill bacteria, viruses and parasites in an emergency.",
        ],
        "How to boil water": [
            "Heat the water until large bubbles rise without stopping, even when you stir.",
            "Keep the rolling boil for 1 minute. Above 2,000 m altitude, keep it for 3 minutes.",
        ],
        "Limits": ["Boiling does not remove fuel, pesticides, heavy metals, salt or nitrate."],
    },
    "Tourniquet": {
        "": ["A tourniquet is a tight band around a limb that stops life-threatening bleeding."],
        "How to use it": [
            "Place the tourniquet 5 to 8 cm above the wound, never over a joint.",
            "Tighten it until the bleeding stops and write down the time.",
        ],
    },
    "Mayday call": {
        "": ["Mayday is the radio distress call for danger to life on VHF channel 16."],
        "What to say": [
            "Say MAYDAY three times, the name of the boat three times, and the position."
        ],
    },
    "Dipole antenna": {
        "": ["A dipole antenna is two wires of a quarter wavelength each, fed in the middle."],
    },
    "Hypothermia": {
        "": [
            "Hypothermia is a body temperature below 35 °C. Shivering stops as it becomes severe."
        ],
        "First aid": [
            "Take off wet clothes, wrap the person in blankets and give warm sweet drinks."
        ],
    },
}


FRONT_PATH = "front.html"


class _Page(Item):  # type: ignore[misc]
    """One entry of a ZIM being written."""

    def __init__(
        self, path: str, title: str, content: str | bytes, media_type: str, front: bool
    ) -> None:
        super().__init__()
        self._path, self._title, self._content = path, title, content
        self._media_type, self._front = media_type, front

    def get_path(self) -> str:
        return self._path

    def get_title(self) -> str:
        return self._title

    def get_mimetype(self) -> str:
        return self._media_type

    def get_contentprovider(self) -> StringProvider:
        return StringProvider(self._content)

    def get_hints(self) -> dict[Hint, bool]:
        return {Hint.FRONT_ARTICLE: self._front}


def article_html(title: str, article: Article) -> str:
    """Return an article as bundler's own corpora hold it."""
    parts, number = [f"<h1 id='top'>{html.escape(title)}</h1>"], 0
    for section, paragraphs in article.items():
        if section:
            anchor = section.lower().replace(" ", "-")
            parts.append(f"<h2 id='{html.escape(anchor)}'>{html.escape(section)}</h2>")
        for paragraph in paragraphs:
            number += 1
            parts.append(f'<p id="p{number}">{html.escape(paragraph)}</p>')
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>"


def make_zim(
    path: Path,
    articles: Mapping[str, Article] = HANDBOOK,
    *,
    raw: Mapping[str, tuple[str, str, str | bytes]] | None = None,
    redirects: Mapping[str, str] | None = None,
    title: str = "Field handbook",
) -> Path:
    """Write a small ZIM with a full-text index.

    `raw` maps further entry paths to title, media type and content; `redirects` from path to path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with Creator(path).config_indexing(True, "eng").config_nbworkers(1) as creator:
        for name, article in articles.items():
            creator.add_item(
                _Page(entry_path(name), name, article_html(name, article), "text/html", True)
            )
        for entry, (entry_title, media_type, content) in (raw or {}).items():
            front = media_type.startswith("text/html")
            creator.add_item(_Page(entry, entry_title, content, media_type, front))
        for source, target in (redirects or {}).items():
            creator.add_redirection(source, source, target, {Hint.FRONT_ARTICLE: True})
        if articles:
            contents = _front_page(title, articles)
            creator.add_item(_Page(FRONT_PATH, title, contents, "text/html", front=False))
        creator.set_mainpath(FRONT_PATH if articles else next(iter(raw or {}), FRONT_PATH))
        for key, value in {"Title": title, "Language": "eng", "Creator": "tests"}.items():
            creator.add_metadata(key, value)
    return path


def _front_page(title: str, articles: Iterable[str]) -> str:
    items = "".join(
        f"<li><a href='{entry_path(name)}'>{html.escape(name)}</a></li>" for name in articles
    )
    return f"<html><body><h1>{html.escape(title)}</h1><ul>{items}</ul></body></html>"


def entry_path(title: str) -> str:
    """Return the path `make_zim` gives an article."""
    return f"{title.lower().replace(' ', '-')}.html"


def make_bundle(
    root: Path,
    *,
    platform: str,
    corpora: Mapping[str, Path | None] | None = None,
    model: bool = True,
    delay_ms: float = 0.0,
    context_tokens: int = 1024,
    parallel: int = 1,
    command: Sequence[str] | None = None,
    devices: Sequence[Mapping[str, Any]] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle that the station can serve; `corpora` maps names to ZIM files.

    Without `corpora` it holds the small handbook. The model is the fake one unless `command` says
    what to start. The runtime lists `devices`, if there are any. `changes` replaces keys of
    `station.json`.
    """
    root.mkdir(parents=True, exist_ok=True)
    if corpora is None:
        corpora = {"handbook": make_zim(root / "corpora" / "handbook.zim")}
    document = {
        "schema_version": 1,
        "name": "quickstart",
        "version": "1",
        "title": "Quickstart",
        "models": [model_entry(context_tokens, parallel)] if model else [],
        "corpora": [_corpus_entry(root, name, path) for name, path in corpora.items()],
        "runtimes": ["fake"] if model else [],
        **(changes or {}),
    }
    (root / "station.json").write_text(json.dumps(document), encoding="utf-8")
    if model:
        (root / "models").mkdir(exist_ok=True)
        (root / "models" / "chat.gguf").write_bytes(b"GGUF")
        runtime = root / "runtime" / platform
        runtime.mkdir(parents=True, exist_ok=True)
        command = command or [
            "{python}", "-m", "bundler.testing.model_server",
            "--port", "{port}", "--delay-ms", str(delay_ms),
        ]  # fmt: skip
        environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
        described = {"command": list(command), "environment": environment, "health": "/health"}
        if devices is not None:
            answer = json.dumps(list(devices))
            described["devices"] = ["{python}", "-c", "import sys; print(sys.argv[1])", answer]
        (runtime / "fake.json").write_text(json.dumps(described), encoding="utf-8")
    return root


def model_entry(
    context_tokens: int = 1024, parallel: int = 1, **changes: str | int
) -> dict[str, Any]:
    """Return the fake model as `station.json` describes one; `changes` replaces keys of it."""
    return {
        "name": "chat", "role": "chat", "file": "models/chat.gguf", "quant": "Q4_K_M",
        "context_tokens": context_tokens, "parallel": parallel, "kv_cache": "f16",
        "residency": "resident", "size_bytes": 4, "memory_bytes": 4, **changes,
    }  # fmt: skip


def _corpus_entry(root: Path, name: str, path: Path | None) -> dict[str, Any]:
    file = path.relative_to(root).as_posix() if path else f"corpora/{name}.zim"
    return {
        "name": name, "file": file, "title": "Field handbook" if name == "handbook" else name,
        "language": "eng", "articles": 0, "full_text": True,
    }  # fmt: skip
