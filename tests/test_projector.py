from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.graph.backends import DEVICES
from bundler.builtin.llamacpp.memory import seeing_memory
from bundler.builtin.llamacpp.projector import (
    MOST_IMAGE_TOKENS,
    Seeing,
    compute_bytes,
    image_tokens,
    projector_facts,
    seeing,
)
from bundler.errors import UnsafeInput
from bundler.lock import LockedFile, ProjectorFacts, TensorFact
from bundler.plan import Memory
from bundler.weights.gguf_writer import TensorPlan, encode_header, field
from tests.adapters import resolution_of
from tests.memory_cases import SHAPES
from tests.models import tiny_gguf
from tests.projectors import Lens, fields_of, plans_of, write_projector
from tests.test_runtime import Server

BASE = SHAPES["Llama-3.2-1B"].model_copy(update={"hidden": 256})
MEASURED = json.loads((Path(__file__).parent / "golden" / "projectors.json").read_text())
KINDS = (
    Lens(), Lens(kind="gemma3"), Lens(kind="qwen2vl_merger"),
    Lens(kind="qwen2.5vl_merger", window_every=2, layers=4),
)  # fmt: skip


def facts_of(lens: Lens) -> ProjectorFacts:
    return ProjectorFacts(
        kind=lens.kind,
        fields={key: value.value for key, value in fields_of(lens).items()},
        tensors=tuple(TensorFact(name=p.name, type=p.type, shape=p.shape) for p in plans_of(lens)),
    )


def read(path: Path, base=BASE) -> ProjectorFacts:
    def read_part(file: LockedFile, start: int, length: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return projector_facts(resolution_of(path), read_part, base)


@pytest.mark.parametrize("case", MEASURED, ids=lambda c: f"{c['lens'].get('kind', 'mlp')}")
def test_seeing_takes_what_llama_cpps_own_clip_reserves_to_the_byte(case: dict):
    # golden/projectors.json holds what `clip_init` and `clip_encode` of llama-cpp-python 0.3.36's
    # llama.cpp reserved for these very files; libmtmd is in none of the wheels we test with.
    lens = Lens(**case["lens"])
    (found,) = compute_bytes(facts_of(lens), tuple(case["side"]), flash=case["flash"])
    assert found == case["compute_bytes"]


@pytest.mark.parametrize("lens", KINDS, ids=lambda lens: lens.kind)
def test_a_projectors_header_tells_all_that_is_needed(lens: Lens, tmp_path: Path):
    found = read(write_projector(tmp_path / "mmproj.gguf", lens))
    assert found.kind == lens.kind
    assert [t.name for t in found.tensors] == [plan.name for plan in plans_of(lens)]
    seen = seeing(found, "none", 4096)
    assert seen.weights_bytes == sum((plan.size_bytes + 31) // 32 * 32 for plan in plans_of(lens))
    assert seen.compute_bytes > 0
    assert seen.image_tokens == image_tokens(found, 4096)


@pytest.mark.parametrize("lens", KINDS, ids=lambda lens: lens.kind)
def test_on_an_accelerator_only_what_the_host_hands_over_stays_in_main_memory(lens: Lens):
    facts = facts_of(lens)
    here, there = seeing(facts, "none", 2048), seeing(facts, "cuda", 2048)
    assert there.weights_bytes >= here.weights_bytes
    assert 0 < there.host_bytes < there.compute_bytes
    (_, host) = compute_bytes(facts, (8, 8), flash=True, device=DEVICES["cuda"])
    assert host < compute_bytes(facts, (8, 8), flash=True)[0]


@pytest.mark.parametrize("kind", ["qwen2vl_merger", "qwen2.5vl_merger"])
@given(context=st.integers(64, 1 << 20))
@settings(max_examples=20, deadline=None)
def test_an_image_never_takes_more_than_half_of_a_context(kind: str, context: int):
    lens = Lens(kind=kind, window_every=2 if "2.5" in kind else 0)
    tokens = image_tokens(facts_of(lens), context)
    assert 0 < tokens <= min(MOST_IMAGE_TOKENS, context // 2)


def test_a_projector_lies_on_the_first_accelerator_or_with_the_model():
    seen = Seeing(1000, 500, host_bytes=50, image_tokens=2, pixels=10)
    kept = 2 * 4 * 2 * BASE.hidden + 2 * 4 * 3 * 10
    alone = Memory(weights_bytes=10, kv_cache_bytes=0, compute_bytes=1, host_bytes=5,
                   by_device=(6, 5))  # fmt: skip
    found = seeing_memory(alone, BASE, seen, on_cpu=False)
    assert (found.weights_bytes, found.compute_bytes) == (1010, 501)
    assert found.by_device == (1506, 5)
    assert found.host_bytes == 5 + 50 + kept
    on_cpu = seeing_memory(alone, BASE, seen, on_cpu=True)
    assert on_cpu.total_bytes == alone.total_bytes + 1500 + kept


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"general.architecture": field("STRING", "llama")}, "it is no projector"),
        ({"clip.projector_type": field("STRING", "resampler")}, "resampler.*is not known here"),
        ({"clip.has_vision_encoder": field("BOOL", False)}, "it sees nothing"),
        ({"clip.has_audio_encoder": field("BOOL", True)}, "hearing is not described"),
        ({"clip.vision.block_count": field("UINT32", 1 << 30)}, "not a number from 1 to 256"),
        ({"clip.vision.patch_size": field("STRING", "x")}, "patch_size is x"),
        ({"clip.vision.attention.head_count": field("UINT32", 5)}, "do not divide into 5 heads"),
        ({"clip.vision.block_count": field("UINT32", 7)}, "it has no v.blk"),
        ({"clip.vision.feature_layer": field("INT32", [1, 2])}, "another graph"),
        ({"clip.vision.image_grid_pinpoints": field("INT32", [56, 112])}, "cuts one image"),
        ({"clip.vision.image_size": field("UINT32", 57)}, "does not divide into patches"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_refused_with_the_reason(more, said: str, tmp_path: Path):
    path = write_projector(tmp_path / "mmproj.gguf", Lens(), **more)
    with pytest.raises(UnsafeInput, match=said) as refused:
        read(path)
    assert refused.value.problems[0].hint


def test_a_projector_of_another_model_is_refused_with_both_widths(tmp_path: Path):
    path = write_projector(tmp_path / "mmproj.gguf", Lens(projected=128))
    with pytest.raises(UnsafeInput, match="vectors of 128, the model takes 256"):
        read(path)


def test_a_tensor_without_a_place_makes_another_graph(tmp_path: Path):
    plans = [*plans_of(Lens()), TensorPlan("v.blk.0.attn_sinks", "F32", (4,))]
    path = tmp_path / "mmproj.gguf"
    header = encode_header(fields_of(Lens()), plans)
    path.write_bytes(header + b"\0" * sum((p.size_bytes + 31) // 32 * 32 for p in plans))
    with pytest.raises(UnsafeInput, match="attn_sinks"):
        read(path)


@given(
    where=st.integers(0, 4000),
    data=st.binary(min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_a_changed_header_is_refused_or_read_but_never_breaks(where: int, data: bytes):
    plans = plans_of(Lens())
    raw = bytearray(encode_header(fields_of(Lens()), plans))
    raw[where : where + len(data)] = data
    size = len(raw) + sum((plan.size_bytes + 31) // 32 * 32 for plan in plans)
    whole = bytes(raw).ljust(size, b"\0")
    file = LockedFile(path="mmproj.gguf", size_bytes=size, sha256="0" * 64)
    resolution = resolution_of(Path("mmproj.gguf"), file)
    try:
        found = projector_facts(resolution, lambda f, s, n: whole[s : s + n], BASE)
    except UnsafeInput:
        return
    assert seeing(found, "none", 4096).weights_bytes < 1 << 40


# -- at the far end --------------------------------------------------------------------------------


def picture(side: int) -> str:
    """Return a grey picture as a `data:` address."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * 3 * side) * side)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def test_the_bundles_server_looks_at_an_image(tmp_path: Path):
    lens = Lens()
    path = write_projector(tmp_path / "mmproj.gguf", lens, seed=2)
    words: dict = {"type": "text", "text": "water"}
    image: dict = {"type": "image_url", "image_url": {"url": picture(64)}}
    with Server(tiny_gguf(), more=["--projector", str(path)]) as server:
        used = []
        for content in ([words], [words, image]):
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            status, answer, _ = server.ask("POST", "/v1/chat/completions", body)
            assert status == 200, answer
            used.append(answer["usage"]["prompt_tokens"])
    assert used[1] - used[0] >= image_tokens(facts_of(lens), 256)
