"""Pictures of memory and of the frontier: readable, well formed, and alone in the world."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.advice.frontier import (
    Frontier,
    FrontierLine,
    FrontierPoint,
    contexts_to_draw,
    find_frontier,
)
from bundler.drawing.frontier_svg import WIDTH, best_within, frontier_svg
from bundler.drawing.memory_bars import allot, memory_bars
from bundler.drawing.memory_svg import memory_svg
from bundler.drawing.picture import draw_memory, letter
from bundler.drawing.svg import Box, Drawing, Label, text_width
from bundler.hardware import Target
from bundler.plan import Choice, FileInput, Memory, Offer, TierPlan
from bundler.solver.decision import Option
from tests.toy_cases import GIB, MIB, QUANTS, offers_to, plan_of, recipe_of, toy_case, toy_target

NASTY = "<b>&\"'\x1b[31m"
SVG = "{http://www.w3.org/2000/svg}"


def choice(name: str, parts: tuple[int, int, int, int], *, host: int = 0, layers: int = -1,
           turns: bool = False, by_device: tuple[int, ...] = ()) -> Choice:  # fmt: skip
    weights, kv, compute, backend = parts
    offer = Offer(
        engine="toy", quant="Q4_K_M", format="gguf", kv_cache="f16", context_tokens=4096,
        parallel=1,
        memory=Memory(weights_bytes=weights, kv_cache_bytes=kv, compute_bytes=compute,
                      overhead_bytes=backend, host_bytes=host, by_device=by_device),
        disk_bytes=1, scratch_bytes=0, bits_per_weight=4, quality=0.1, gpu_layers=layers, steps=(),
        output=FileInput(sha256="0" * 64, size_bytes=1),
    )  # fmt: skip
    residency = "on-demand" if turns else "resident"
    return Choice(model=name, role="chat", residency=residency, offer=offer, runner_up=None,
                  reason="")  # fmt: skip


def tier_of(*choices: Choice, vram: int = 20 * GIB, devices: int = 1, name: str = "") -> TierPlan:
    target = Target(name="box", title=f"a box {NASTY}", accelerator="cuda" if vram else "none",
                    usable_vram_bytes=vram, device_count=devices, ram_bytes=32 * GIB)  # fmt: skip
    return TierPlan(name=name, target=target, choices=choices, budgets=())


PARTS = st.tuples(
    st.integers(0, 12 * GIB), st.integers(0, 3 * GIB), st.integers(0, GIB), st.integers(0, GIB)
)
CHOICES = st.lists(
    st.tuples(PARTS, st.integers(0, GIB), st.sampled_from([-1, -1, 0, 7]), st.booleans()),
    max_size=30,
).map(
    lambda found: [
        choice(f"m{n}", parts, host=host, layers=layers, turns=turns)
        for n, (parts, host, layers, turns) in enumerate(found)
    ]
)


# -- memory ----------------------------------------------------------------------------------------


@given(CHOICES, st.booleans())
def test_bars_hold_what_the_offers_take(choices: list[Choice], accelerated: bool):
    tier = tier_of(*choices, vram=20 * GIB if accelerated else 0)
    bars = memory_bars(tier)
    assert [bar.name for bar in bars] == (["VRAM", "RAM"] if accelerated else ["RAM"])
    drawn = sum(s.total_bytes for bar in bars for s in (*bar.residents, *bar.turns))
    on_card = [c for c in choices if accelerated and c.offer.gpu_layers != 0]
    hosts = sum(c.offer.memory.host_bytes for c in on_card)
    assert drawn == sum(c.offer.memory.total_bytes for c in choices) + hosts
    for bar in bars:
        largest = max((s.total_bytes for s in bar.turns), default=0)
        assert bar.used_bytes == sum(s.total_bytes for s in bar.residents) + largest


def test_several_accelerators_have_a_bar_each():
    parts = (8 * GIB, GIB, GIB, 0)
    tier = tier_of(choice("chat", parts, by_device=(6 * GIB, 4 * GIB)), devices=2)
    first, second, ram = memory_bars(tier)
    assert (first.name, first.used_bytes) == ("VRAM 1", 6 * GIB)
    assert (second.name, second.used_bytes) == ("VRAM 2", 4 * GIB)
    assert ram.used_bytes == 0
    weights = dict(first.residents[0].parts)["weights"] + dict(second.residents[0].parts)["weights"]
    assert abs(weights - 8 * GIB) <= 2


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20), st.integers(30, 120))
def test_cells_add_up_and_nothing_that_is_there_vanishes(sizes: list[int], cells: int):
    scale = max(1, sum(sizes))
    found = allot(sizes, scale, cells)
    assert sum(found) == (cells if sum(sizes) else 0)
    assert all(count >= 0 for count in found)
    assert all(count for size, count in zip(sizes, found, strict=True) if size)


@given(CHOICES, st.integers(0, 300))
def test_a_picture_is_as_wide_as_it_may_be_and_no_wider(choices: list[Choice], columns: int):
    lines = ["".join(text for text, _ in line)
             for line in draw_memory(memory_bars(tier_of(*choices)), columns)]  # fmt: skip
    width = max(40, min(120, columns))
    bars = [line for line in lines if line.startswith("  [")]
    assert all(len(line) == width for line in bars)
    longest_head = max(len(line) for line in lines if not line.startswith("  "))
    assert all(len(line) <= max(width, longest_head) for line in lines)
    assert all(line.isascii() for line in lines)


def test_a_picture_shows_models_by_letters_and_turns_below_each_other():
    tier = tier_of(
        choice("chat", (9 * GIB, 2 * GIB, GIB, GIB), host=GIB),
        choice("code", (4 * GIB, GIB // 2, 0, 0), turns=True),
        choice("tiny", (MIB, 0, 0, 0)),
        choice("other", (5 * GIB, 0, 0, 0), turns=True),
    )
    lines = ["".join(text for text, _ in line) for line in draw_memory(memory_bars(tier), 84)]
    assert lines == [
        "VRAM   18.0 GiB of 20.0 GiB usable, 2.00 GiB free",
        "  [" + "A" * 35 + "a" * 8 + "+" * 4 + "-" * 4 + "C" + "D" * 20 + "." * 8 + "]",
        "  [" + " " * 52 + "B" * 16 + "b" * 2 + "." * 10 + "]",
        "RAM    1.00 GiB of 32.0 GiB usable, 31.0 GiB free; beside the accelerator",
        "  [" + "A" * 2 + "." * 78 + "]",
        "  A chat  B code (takes turns)  C tiny  D other (takes turns)",
        "  ABC weights  abc KV cache  + compute buffers  - backend  . free",
    ]


def test_there_are_letters_for_any_number_of_models():
    assert [letter(number) for number in (0, 25, 26, 99)] == ["A", "Z", "#", "#"]


# -- drawings --------------------------------------------------------------------------------------


def labels_of(root: ElementTree.Element) -> list[tuple[str, Box]]:
    found = []
    for text in root.iter(f"{SVG}text"):
        if text.get("transform"):
            continue
        label = Label(
            text.text or "", float(text.get("x", 0)), float(text.get("y", 0)),
            float(text.get("font-size", 0)), text.get("text-anchor", "start"),  # type: ignore[arg-type]
            text.get("class", ""),
        )  # fmt: skip
        found.append((label.text, label.box))
    return found


def check(drawing: str, width: float) -> ElementTree.Element:
    """Hold a drawing to what all of them must be; return its root."""
    root = ElementTree.fromstring(drawing)
    assert root.get("role") == "img"
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert set((root.get("aria-labelledby") or "").split()) <= set(ids)
    assert root.find(f"{SVG}title") is not None
    assert root.find(f"{SVG}desc") is not None
    references = re.findall(r"url\(([^)]*)\)", drawing)
    assert all(r.startswith("#") and r[1:] in ids for r in references)
    plain = drawing.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|href|<script|<image|@import|data:|\bon\w+=", plain)
    assert "prefers-color-scheme:dark" in drawing
    assert "@media print" in drawing
    labels = labels_of(root)
    assert labels
    height = float((root.get("viewBox") or "").split()[3])
    for number, (text, box) in enumerate(labels):
        assert box.inside(Box(-1, 0, width + 2, height)), text
        for other, other_box in labels[:number]:
            assert not box.overlaps(other_box), f"{text!r} covers {other!r}"
    return root


@settings(max_examples=80, deadline=None)
@given(CHOICES.filter(lambda choices: len(choices) <= 8))
def test_the_drawing_of_memory_is_sound(choices: list[Choice]):
    bars = memory_bars(tier_of(*choices))
    check(memory_svg(bars, identity="m", machine=NASTY.replace("\x1b", "")), 720)


def frontier_for(points: int, contexts: tuple[int, ...], *, limit: int, left: int,
                 asked: int, kv: int = GIB) -> Frontier:  # fmt: skip
    lines = tuple(
        FrontierLine(
            context_tokens=tokens,
            points=tuple(
                FrontierPoint(
                    quant=f"Q{n}_K_M", kv_cache="f16" if n % 2 else "q8_0", gpu_layers=-1,
                    memory_bytes=(n + 1) * GIB + kv * tokens // 8192,
                    damage=0.5 * 0.4**n if n < points - 1 else 0.0,
                    chosen=n == points // 2 and tokens == asked,
                )
                for n in range(points)
            ),
        )
        for tokens in contexts
    )  # fmt: skip
    return Frontier(model="chat", limit="VRAM", limit_bytes=limit, left_bytes=left,
                    context_tokens=asked, parallel=2, lines=lines)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 14), st.integers(1, 40), st.integers(1, 40), st.integers(0, 5),
    st.integers(MIB, 4 * GIB),
)  # fmt: skip
def test_the_drawing_of_a_frontier_is_sound(
    points: int, limit: int, left: int, doublings: int, kv: int
):
    contexts = tuple(4096 * 2**n for n in range(doublings + 1))
    found = frontier_for(
        points, contexts, limit=limit * GIB, left=min(left, limit) * GIB, asked=contexts[0], kv=kv
    )
    root = check(frontier_svg([found, found], title="a bundle", machine="a box & more"), WIDTH)
    texts = [text for text, _ in labels_of(root)]
    chosen = [point.quant for point in found.lines[0].points if point.chosen]
    assert all(any(text.startswith(name) for text in texts) for name in chosen)
    circles = [c for c in root.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    assert len(circles) == 2 * points * len(contexts)


def test_a_frontier_has_no_offer_that_another_beats_and_marks_the_choice():
    recipe = recipe_of({"chat": {"context_tokens": 4096}})
    case = toy_case(recipe, {"chat": 2000}, vram_mib=1400)
    plan = plan_of(case, toy_target(1400))

    def options_at(tokens: int) -> list[Option]:
        request = recipe.models["chat"].model_copy(update={"context_tokens": tokens})
        return [Option(o, 0, (o.memory.total_bytes,)) for o in offers_to(request, 2000)]

    found = find_frontier(
        plan.choices[0], 32768, options_at, lambda option: option.needs[0], limit="VRAM",
        limit_bytes=1400 * MIB, left_bytes=1400 * MIB,
    )  # fmt: skip
    assert [line.context_tokens for line in found.lines] == [2048, 4096, 8192, 16384, 32768]
    for line in found.lines:
        sizes = [point.memory_bytes for point in line.points]
        damages = [point.damage for point in line.points if not point.chosen]
        assert sizes == sorted(sizes)
        assert damages == sorted(damages, reverse=True)
        assert len(line.points) <= 2 * len(QUANTS)
    (chosen,) = [point for line in found.lines for point in line.points if point.chosen]
    assert best_within(found.lines[1], 1400 * MIB) == chosen


@given(st.integers(64, 200_000), st.integers(64, 200_000))
def test_contexts_are_half_of_what_is_asked_its_doublings_and_the_longest(asked: int, longest: int):
    found = contexts_to_draw(asked, longest)
    assert list(found) == sorted(set(found))
    assert asked in found
    assert 2 <= len(found) <= 7 or asked == 64 or longest == asked == found[0]
    assert found[-1] == max(asked, longest)


def test_a_label_is_placed_where_it_covers_nothing_or_not_at_all():
    drawing = Drawing(100, 100)
    drawing.label(Label("here", 10, 20, 12))
    assert not drawing.place([Label("here", 10, 20, 12)])
    assert drawing.place([Label("here", 10, 20, 12), Label("here", 10, 40, 12)])
    assert not drawing.place([Label("outside", 95, 60, 12)], inside=Box(0, 0, 100, 100))
    assert len(drawing.parts) == 2


@pytest.mark.parametrize("text", ["", "iiii", "WWWW", "Q5_K_M · q8_0"])
def test_a_text_is_as_wide_as_its_letters(text: str):
    assert text_width(text, 20) == pytest.approx(2 * text_width(text, 10))
    assert text_width(text + "x", 10) > text_width(text, 10)


def test_markup_in_a_name_is_text() -> None:
    drawn: Any = memory_svg(
        memory_bars(tier_of(choice("chat", (GIB, 0, 0, 0)))), identity="m", machine='<i>&"'
    )
    assert "<i>" not in drawn
    assert "&lt;i&gt;&amp;" in drawn
