"""Examines a whole bundle: right passages, right citation, and silence where there is nothing.

    .venv/bin/python bench/exam.py dist/quickstart examples/handbook-questions.json

Asks every question through the station's own page, as a person would. Prints one line a question
with `--each`, then a summary and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

from bundler.testing.station_process import running_station


def ask(url: str, question: str) -> dict[str, object]:
    """Return what the station found, said and cited for one question."""
    request = urllib.request.Request(
        url + "api/chat",
        json.dumps({"question": question}).encode(),
        {"Content-Type": "application/json"},
    )
    found: dict[str, object] = {"sources": [], "text": "", "cited": [], "problem": ""}
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if event["type"] == "sources":
                found["sources"] = event["items"]
            elif event["type"] == "done":
                found["text"], found["cited"] = event.get("text", ""), event["cited"]
            elif event["type"] == "error":
                found["problem"] = event["text"]
    return found


def grade(item: dict[str, object], found: dict[str, object]) -> dict[str, bool]:
    """Hold one answer against what is expected."""
    wanted = str(item["article"] or "").replace(".md", ".html")
    paths = [str(source["path"]) for source in found["sources"]]  # type: ignore[index,attr-defined]
    cited = [paths[n - 1] for n in found["cited"] if n <= len(paths)]  # type: ignore[attr-defined]
    text = str(found["text"]).lower()
    return {
        "retrieved": wanted in paths,
        "retrieved_first": paths[:1] == [wanted],
        "cited_right": bool(cited) and cited[0] == wanted,
        "said_expected": all(str(word).lower() in text for word in item["expect"]),  # type: ignore[attr-defined]
        "refused": not paths or "do not say" in text or not cited,
    }


def main() -> int:
    """Run the exam and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--each", action="store_true", help="print every question and answer")
    words = parser.parse_args()
    items = json.loads(words.questions.read_text())
    grades = []
    with running_station(words.bundle) as station:
        for item in items:
            found = ask(station.url, item["question"])
            if found["problem"]:
                sys.exit(f"error: {item['question']}: {found['problem']}")
            grades.append(grade(item, found))
            if words.each:
                marks = "".join(
                    mark if grades[-1][key] else "-"
                    for key, mark in (("retrieved", "r"), ("cited_right", "c"), ("refused", "n"))
                )
                print(f"{marks} {item['question']}\n    {found['text']}")
    answerable = [g for g, i in zip(grades, items, strict=True) if i["article"]]
    unanswerable = [g for g, i in zip(grades, items, strict=True) if not i["article"]]
    figures = {
        key: round(sum(g[key] for g in answerable) / len(answerable), 3)
        for key in ("retrieved", "retrieved_first", "cited_right", "said_expected")
    }
    figures["wrongly_refused"] = round(sum(g["refused"] for g in answerable) / len(answerable), 3)
    figures["rightly_refused"] = round(
        sum(g["refused"] for g in unanswerable) / max(1, len(unanswerable)), 3
    )
    for key, share in figures.items():
        print(f"{key:18} {100 * share:5.1f} %")
    print(json.dumps({"answerable": len(answerable), "unanswerable": len(unanswerable), **figures}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
