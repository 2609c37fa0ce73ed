import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import UnsafeInput
from bundler.weights import (
    GGML_TYPES,
    GgufArray,
    GgufHeader,
    SafetensorsHeader,
    TensorPlan,
    encode_header,
    field,
    read_gguf_file,
    read_gguf_header,
    read_safetensors_header,
    read_shard_index,
    tensor_bytes,
)
from bundler.weights.bounded import FIRST_WINDOW_BYTES
from bundler.weights.ggml_types import BY_NAME

# -- making files ----------------------------------------------------------------------------------


def u32(number: int) -> bytes:
    return struct.pack("<I", number & 0xFFFFFFFF)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number & (1 << 64) - 1)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def entry(name="t", sizes=(32,), type_=0, offset=0, dimensions=None) -> bytes:
    shape = b"".join(map(u64, sizes))
    dimensions = len(sizes) if dimensions is None else dimensions
    return text(name) + u32(dimensions) + shape + u32(type_) + u64(offset)


def gguf(
    fields=(), tensors=(), data=b"", *, magic=b"GGUF", version=3, n_tensors=None, n_fields=None,
    alignment=32,
) -> bytes:  # fmt: skip
    """Put a file together from raw parts, right or wrong."""
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(fields) if n_fields is None else n_fields)
    head += b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def aligned_to(value: int, type_: int = 4) -> bytes:
    raw = text(str(value)) if type_ == 8 else u32(value) if type_ == 4 else u64(value)
    return text("general.alignment") + u32(type_) + raw


def read_bytes(raw: bytes) -> GgufHeader:
    return read_gguf_header(lambda start, length: raw[start : start + length], len(raw), where="x")


ONE = entry(), bytes(128)
ARRAY, STRING = u32(9), u32(8)
KEY = text("k")

MALFORMED: dict[str, tuple[bytes, str]] = {
    # llama.cpp, tests/test-gguf.cpp: HANDCRAFTED_HEADER_*
    "header bad magic": (gguf(magic=b"GGUX"), "not a GGUF"),
    "header version 0": (gguf(version=0), "version 0"),
    "header version 1": (gguf(version=1), "version 1"),
    "header future version": (gguf(version=4), "version 4"),
    "header big endian": (gguf(version=3 << 24), "big-endian"),
    "header too many tensors": (gguf(n_tensors=-1), "tensors cannot be"),
    "header too many fields": (gguf(n_fields=-1), "fields cannot be"),
    "header more tensors than bytes": (gguf(n_tensors=9), "tensors cannot be"),
    "header nothing": (b"", "not a GGUF"),
    "header cut after the magic": (b"GGUF", "not a GGUF"),
    # HANDCRAFTED_KV_*
    "field key too long": (gguf([u64(-1) + bytes(16)]), "a key claims"),
    "field key longer than the file": (gguf([u64(1000) + bytes(16)]), "left"),
    "field key empty": (gguf([text("") + u32(4) + u32(1)]), "empty"),
    "field key not UTF-8": (gguf([text(b"\xff") + u32(4) + u32(1)]), "UTF-8"),
    "field type unknown": (gguf([KEY + u32(13) + u64(0)]), "unknown type 13"),
    "field type negative": (gguf([KEY + u32(-1) + u64(0)]), "unknown type"),
    "field twice": (gguf([KEY + u32(4) + u32(1)] * 2), "twice"),
    "field string too long": (gguf([KEY + STRING + u64(1 << 62)]), "claims"),
    "field string not UTF-8": (gguf([KEY + STRING + text(b"\xc3\x28")]), "UTF-8"),
    "alignment not a power of two": (gguf([aligned_to(13)]), "power of two"),
    "alignment zero": (gguf([aligned_to(0)]), "power of two"),
    "alignment 2^31": (gguf([aligned_to(1 << 31)]), "power of two"),
    "alignment of another type": (gguf([aligned_to(32, 10)]), "not a UINT32"),
    "alignment as a string": (gguf([aligned_to(32, 8)]), "not a UINT32"),
    # Arrays: the 49 bytes on which gguf-py 0.19 loops, and type confusion
    "array of 2^40 strings": (gguf([KEY + ARRAY + STRING + u64(1 << 40)]), "more than the file"),
    "array of 2^40 bytes": (gguf([KEY + ARRAY + u32(0) + u64(1 << 40)]), "more than the file"),
    "array length times size wraps": (
        gguf([KEY + ARRAY + u32(10) + u64((1 << 61) + 1) + bytes(8)]), "more than the file"),
    "array of arrays": (gguf([KEY + ARRAY + ARRAY + u64(1) + bytes(64)]), "nested"),
    "array of unknown type": (gguf([KEY + ARRAY + u32(77) + u64(1) + bytes(64)]), "unknown"),
    "array string too long": (gguf([KEY + ARRAY + STRING + u64(1) + u64(1 << 60)]), "claims"),
    "array string longer than the file": (
        gguf([KEY + ARRAY + STRING + u64(1) + u64(4096) + bytes(8)]), "left"),
    # HANDCRAFTED_TENSORS_*
    "tensor name too long": (gguf((), [entry("n" * 64)], bytes(128)), "claims 64"),
    "tensor name empty": (gguf((), [entry("")], bytes(128)), "not printable"),
    "tensor name with a line feed": (gguf((), [entry("a\nb")], bytes(128)), "not printable"),
    "tensor of 5 dimensions": (gguf((), [entry(sizes=[1] * 5)], bytes(128)), "5 dimensions"),
    "tensor of 2^32-1 dimensions": (gguf((), [entry(dimensions=-1)], bytes(128)), "dimensions"),
    "tensor of no dimension": (gguf((), [entry(sizes=[])], bytes(128)), "0 dimensions"),
    "tensor of negative size": (gguf((), [entry(sizes=[-1])], bytes(128)), "impossible shape"),
    "tensor of size zero": (gguf((), [entry(sizes=[32, 0])], bytes(128)), "impossible shape"),
    "tensor with too many values": (
        gguf((), [entry(sizes=[1 << 32, 1 << 32])], bytes(128)), "impossible shape"),
    "tensor whose count wraps": (
        gguf((), [entry(sizes=[1 << 62, 4, 1])], bytes(128)), "impossible shape"),
    "tensor whose bytes wrap": (
        gguf((), [entry(sizes=[(1 << 62) + 8])], bytes(128)), "would end at"),
    "tensor whose padding wraps": (
        gguf((), [entry(sizes=[(1 << 63) - 1], type_=24)], bytes(128)), "would end at"),
    "tensor of unknown type": (gguf((), [entry(type_=43)], bytes(128)), "unknown type 43"),
    "tensor of removed type": (gguf((), [entry(type_=31)], bytes(128)), "unknown type 31"),
    "tensor of negative type": (gguf((), [entry(type_=-1)], bytes(128)), "unknown type"),
    "tensor rows not of whole blocks": (
        gguf((), [entry(sizes=[32], type_=12)], bytes(144)), "not a multiple"),
    "tensor offset wrong": (gguf((), [entry(offset=32)], bytes(256)), "gap, an overlap"),
    "tensor offset near 2^64": (gguf((), [entry(offset=-32)], bytes(256)), "gap, an overlap"),
    "tensors overlap": (
        gguf((), [entry("a"), entry("b", offset=64)], bytes(256)), "gap, an overlap"),
    "tensors not aligned": (
        gguf((), [entry("a", [1]), entry("b", offset=4)], bytes(256)), "gap, an overlap"),
    "tensors aligned otherwise": (
        gguf([aligned_to(64)], [entry("a", [8]), entry("b", offset=32)], bytes(512), alignment=64),
        "gap, an overlap"),
    "tensor twice": (gguf((), [entry("a"), entry("a", offset=128)], bytes(256)), "twice"),
    # HANDCRAFTED_DATA_*, CVE-2026-7482: sizes and offsets beyond the file
    "data too short": (gguf((), [entry()], bytes(127)), "would end at"),
    "data missing": (gguf((), [entry()]), "would end at"),
    "data far beyond the file": (gguf((), [entry(sizes=[1 << 40])], bytes(128)), "would end at"),
    "pickle named as GGUF": (b"\x80\x04\x95" + bytes(64), "not a GGUF"),
    "zip named as GGUF": (b"PK\x03\x04" + bytes(64), "not a GGUF"),
}  # fmt: skip


def full_file(version: int = 3) -> bytes:
    """A valid file with fields and arrays of every type, and tensors of several."""
    numbers = ["UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"]
    fields = {"general.architecture": field("STRING", "llama"), "b": field("BOOL", True)}
    fields |= {f"n.{name}": field(name, 7) for name in numbers}
    fields |= {f"a.{name}": field(name, [1, 2, 3]) for name in numbers}
    fields |= {f"f.{name}": field(name, 0.5) for name in ("FLOAT32", "FLOAT64")}
    fields |= {f"af.{name}": field(name, [0.5, -1.0]) for name in ("FLOAT32", "FLOAT64")}
    fields |= {"ab": field("BOOL", [True, False]), "s": field("STRING", ["", "▁a", "<0x0A>"])}
    tensors = [
        TensorPlan("token_embd.weight", "Q4_K", (4, 256)), TensorPlan("norm", "F32", (5,)),
        TensorPlan("blk.0.attn_q.weight", "BF16", (3, 8)), TensorPlan("e", "Q8_0", (2, 2, 32)),
    ]  # fmt: skip
    head = bytearray(encode_header(fields, tensors))
    head[4] = version
    return bytes(head) + bytes(sum(-(-t.size_bytes // 32) * 32 for t in tensors))


# -- GGUF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.fault("E1")
def test_a_malformed_gguf_is_refused_at_once_with_its_reason(name):
    raw, reason = MALFORMED[name]
    started = time.perf_counter()
    with pytest.raises(UnsafeInput) as caught:
        read_bytes(raw)
    assert time.perf_counter() - started < 1
    assert reason in str(caught.value)
    assert "at byte" in str(caught.value)
    assert caught.value.problems[0].where == "x"
    assert caught.value.problems[0].hint


@pytest.mark.fault("E1")
def test_the_49_bytes_that_stop_others_are_refused():
    raw = gguf([KEY + ARRAY + STRING + u64(1 << 40)])
    assert len(raw.rstrip(b"\0")) <= 49
    with pytest.raises(UnsafeInput, match="1099511627776 elements"):
        read_bytes(raw)


@pytest.mark.parametrize("version", [2, 3])
def test_a_valid_gguf_is_read_whole(version):
    header = read_bytes(full_file(version))
    assert header.version == version
    assert header.metadata["n.INT64"] == 7
    assert header.metadata["b"] is True
    assert list(header.metadata["s"]) == ["", "▁a", "<0x0A>"]
    assert list(header.metadata["ab"]) == [True, False]
    assert list(header.metadata["af.FLOAT32"]) == [0.5, -1.0]
    assert header.tensors[0] == ("token_embd.weight", "Q4_K", (4, 256), 0, 576)
    assert header.tensors[3].shape == (2, 2, 32)
    assert header.data_offset % 32 == 0


def test_a_header_without_tensors_is_valid():
    raw = gguf([text("general.architecture") + STRING + text("llama")])
    assert read_bytes(raw).tensors == ()
    assert read_bytes(raw.rstrip(b"\0")).metadata == {"general.architecture": "llama"}


def test_a_custom_alignment_is_honoured():
    tensors = [entry("a", [8]), entry("b", [8], offset=64)]
    header = read_bytes(gguf([aligned_to(64)], tensors, bytes(128), alignment=64))
    assert (header.alignment, header.data_offset % 64, header.tensors[1].offset) == (64, 0, 64)


def test_files_of_gguf_py_are_read_as_it_reads_them(tmp_path):
    import gguf as gguf_py
    import numpy as np

    writer = gguf_py.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "▁b"])
    writer.add_token_scores([-1.0, 0.25])
    writer.add_tensor("x.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("y.weight", np.arange(3, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_file(tmp_path / "x.gguf")
    theirs = gguf_py.GGUFReader(tmp_path / "x.gguf")
    for key, value in header.metadata.items():
        ours = list(value) if isinstance(value, GgufArray) else value
        assert ours == theirs.fields[key].contents()
    assert [header.data_offset + tensor.offset for tensor in header.tensors] == [
        tensor.data_offset for tensor in theirs.tensors
    ]
    assert header.tensors[0].shape == (2, 32)


def test_the_table_of_types_is_that_of_gguf_py():
    import gguf as gguf_py

    for number, (values, size) in gguf_py.GGML_QUANT_SIZES.items():
        ours = GGML_TYPES[int(number)]
        # Released gguf-py has Q8_1 as it was before 2024: two floats instead of two halves.
        size = 36 if number.name == "Q8_1" else size
        assert (ours.name, ours.block_values, ours.block_bytes) == (number.name, values, size)


def test_the_table_of_types_is_that_of_the_library_itself():
    done = subprocess.run(
        [sys.executable, "-c", ASK_GGML], capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    assert {str(n): [t.block_values, t.block_bytes] for n, t in GGML_TYPES.items()} == theirs


def test_the_size_of_a_tensor_follows_from_type_and_shape():
    assert tensor_bytes("Q4_K", (10, 512)) == 10 * 2 * 144
    assert tensor_bytes("F16", (3,)) == 6
    with pytest.raises(ValueError, match="blocks of 256"):
        tensor_bytes("Q6_K", (10, 100))
    assert BY_NAME["BF16"].number == 30


ASK_GGML = """
import ctypes, json, pathlib, llama_cpp
folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
ggml = ctypes.CDLL(str(next(iter(sorted(folder.glob("*ggml-base*"))))))
ggml.ggml_blck_size.restype = ctypes.c_int64
ggml.ggml_type_size.restype = ctypes.c_size_t
numbers = [n for n in range(43) if ggml.ggml_type_size(n)]
print(json.dumps({n: [ggml.ggml_blck_size(n), ggml.ggml_type_size(n)] for n in numbers}))
"""


def test_a_long_header_is_fetched_in_doubling_windows():
    tokens = [f"token {n}" for n in range(300_000)]
    raw = encode_header({"t": field("STRING", tokens)}, [TensorPlan("w", "F32", (1 << 20,))])
    size = len(raw) + (4 << 20)
    asked = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return raw[start : start + length].ljust(length, b"\0")

    header = read_gguf_header(read, size)
    assert list(header.metadata["t"])[299_999] == "token 299999"
    assert asked[0] == (0, FIRST_WINDOW_BYTES)
    assert len(asked) <= 4
    assert sum(length for _, length in asked) <= 2 * len(raw) + FIRST_WINDOW_BYTES


@pytest.mark.fault("E2")
def test_a_file_shorter_than_promised_is_refused():
    raw = full_file()
    with pytest.raises(UnsafeInput, match="gave only"):
        read_gguf_header(lambda start, length: raw[start : start + 100], len(raw))


@pytest.mark.fault("E1")
def test_every_truncation_is_refused():
    raw = full_file()
    for length in range(len(raw) - 32):
        with pytest.raises(UnsafeInput):
            read_bytes(raw[:length])


INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Damage a file's header in one to four places."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(out), 1200))
        match rng.randrange(5):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice([1, 2, 4, 8])
                number = rng.choice(INTERESTING) & (1 << 8 * width) - 1
                out[at : at + width] = number.to_bytes(width, "little")
            case 2:
                del out[at : at + rng.randint(1, 16)]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                start = rng.randrange(min(len(out), 1200))
                out[at:at] = out[start : start + rng.randint(1, 64)]
    return bytes(out)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.fault("E1")
def test_a_mutated_gguf_is_refused_or_valid_and_nothing_else(seed):
    rng = random.Random(seed)
    originals = [full_file(2), full_file(3)]
    accepted = 0
    for _ in range(150):
        raw = mutated(rng.choice(originals), rng)
        started = time.perf_counter()
        try:
            header = read_bytes(raw)
        except UnsafeInput:
            continue
        finally:
            assert time.perf_counter() - started < 1
        accepted += 1
        for value in header.metadata.values():
            assert not isinstance(value, GgufArray) or len(list(value)) == value.count
        for tensor in header.tensors:
            assert tensor.size_bytes == tensor_bytes(tensor.type, tensor.shape)
            assert header.data_offset + tensor.offset + tensor.size_bytes <= len(raw)
    assert accepted < 150


@given(st.binary(max_size=400))
@pytest.mark.fault("E1")
def test_any_bytes_after_the_magic_are_refused_or_valid(raw):
    try:
        read_bytes(b"GGUF\x03\0\0\0" + raw)
    except UnsafeInput:
        return


MEASURE = """
import re, sys, pathlib
from bundler.errors import UnsafeInput
from bundler.weights import read_gguf_file
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_gguf_file(path)
    except UnsafeInput:
        print("refused")
# The high-water mark of this process alone: ru_maxrss would include the parent's at its fork.
print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.fault("E1")
def test_hostile_files_cost_less_than_100_mb(tmp_path):
    for number, (raw, _) in enumerate(MALFORMED.values()):
        (tmp_path / f"{number}.gguf").write_bytes(raw)
    # Real bytes behind the claims, up to the limits and beyond.
    big = 40 << 20
    claims = {
        "ok-strings": ARRAY + STRING + u64(2_000_000),
        "ok-numbers": ARRAY + u32(4) + u64(big // 4),
        "too-many-strings": ARRAY + STRING + u64(big // 8),
        "too-long-string": STRING + u64(big),
        "too-many-numbers": ARRAY + u32(4) + u64(60 << 18),
    }
    for name, head in claims.items():
        with (tmp_path / f"{name}.gguf").open("wb") as file:
            file.write(gguf([KEY + head], alignment=1))
            file.truncate(64 << 20)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    *refused, kilobytes = done.stdout.split()
    assert len(refused) == len(MALFORMED) + 3
    assert int(kilobytes) << 10 < 100 << 20
    assert time.perf_counter() - started < 20


# -- safetensors -----------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(raw) if length is None else length) + raw + data


def read_safe(raw: bytes) -> SafetensorsHeader:
    return read_safetensors_header(lambda s, n: raw[s : s + n], len(raw), where="m.safetensors")


def st_entry(begin=0, end=8, shape=(2,), dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


ATTACKS: dict[str, tuple[bytes, str]] = {
    "too short": (b"\x02\0\0\0", "too short"),
    "header of 2^63": (safetensors({}, length=1 << 63), "would have"),
    "header of 2^64-1": (safetensors({}, length=(1 << 64) - 1), "would have"),
    "header over 100 MB": (safetensors({}, length=100_000_001), "would have"),
    "header longer than the file": (safetensors({}, length=400), "would have"),
    "not JSON": (safetensors(b"{hello}"), "not the JSON"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not the JSON"),
    "not an object": (safetensors([]), "not a JSON object"),
    "a pickle": (b"\x80\x02}q\0." + bytes(16), "not a safetensors"),
    "deep nesting": (safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "deeply"),
    "a name twice": (
        safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(st_entry()).encode(),) * 2), bytes(8)),
        "comes twice"),
    "a number that is none": (safetensors(b'{"a":NaN}'), "not the JSON"),
    "entry not an object": (safetensors({"a": 1}, bytes(8)), "entry of tensor"),
    "entry with more": (safetensors({"a": st_entry(x=1)}, bytes(8)), "entry of tensor"),
    "type unknown": (safetensors({"a": st_entry(dtype="Q4")}, bytes(8)), "unknown type"),
    "type not a name": (safetensors({"a": st_entry(dtype=["F32"])}, bytes(8)), "unknown type"),
    "shape negative": (safetensors({"a": st_entry(shape=[-2])}, bytes(8)), "impossible"),
    "shape not whole": (safetensors({"a": st_entry(shape=[2.0])}, bytes(8)), "impossible"),
    "shape true": (safetensors({"a": st_entry(shape=[True, 2])}, bytes(8)), "impossible"),
    "shape overflows": (safetensors({"a": st_entry(shape=[1 << 62, 4])}, bytes(8)), "cannot have"),
    "shape beyond 63 bits": (safetensors({"a": st_entry(shape=[1 << 63])}, bytes(8)), "impossible"),
    "shape of 9": (safetensors({"a": st_entry(shape=[1] * 9)}, bytes(8)), "impossible"),
    "size does not match": (safetensors({"a": st_entry(shape=[3])}, bytes(8)), "cannot have"),
    "end before begin": (safetensors({"a": st_entry(8, 0)}, bytes(8)), "cannot have"),
    "half a byte": (safetensors({"a": st_entry(0, 1, [1], "F4")}, bytes(1)), "cannot have"),
    "one offset": (
        safetensors({"a": st_entry() | {"data_offsets": [0]}}, bytes(8)), "impossible"),
    "beyond the file": (safetensors({"a": st_entry()}, bytes(7)), "tensors end at"),
    "hidden bytes at the end": (safetensors({"a": st_entry()}, bytes(9)), "tensors end at"),
    "hidden bytes between": (
        safetensors({"a": st_entry(), "b": st_entry(9, 17)}, bytes(17)), "a gap"),
    "overlap": (safetensors({"a": st_entry(), "b": st_entry(4, 12)}, bytes(12)), "a gap"),
    "the same bytes twice": (safetensors({"a": st_entry(), "b": st_entry()}, bytes(8)), "a gap"),
    "metadata not strings": (
        safetensors({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    "metadata not an object": (safetensors({"__metadata__": 7}, b""), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.fault("E3")
def test_an_attack_by_safetensors_is_refused_at_once(name):
    raw, reason = ATTACKS[name]
    started = time.perf_counter()
    with pytest.raises(UnsafeInput) as caught:
        read_safe(raw)
    assert time.perf_counter() - started < 1
    assert reason in str(caught.value)
    assert str(caught.value).startswith("m.safetensors: ")


def test_safetensors_of_the_reference_library_are_read(tmp_path):
    import numpy as np

    library = pytest.importorskip("safetensors.numpy")
    tensors = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.zeros((0, 4), np.float32),
        "scalar": np.array(1.5, np.float64), "flag": np.array([True]),
    }  # fmt: skip
    raw = library.save(tensors, metadata={"format": "pt"})
    header = read_safe(raw)
    assert header.metadata == {"format": "pt"}
    assert {t.name: t.shape for t in header.tensors} == {k: v.shape for k, v in tensors.items()}
    assert [t.name for t in header.tensors] == sorted(tensors)
    for tensor in header.tensors:
        stored = raw[tensor.offset : tensor.offset + tensor.size_bytes]
        assert stored == tensors[tensor.name].tobytes()


@settings(max_examples=200)
@given(st.integers(0, 1 << 32), st.data())
@pytest.mark.fault("E3")
def test_mutated_safetensors_are_refused_or_valid_and_nothing_else(seed, data):
    raw = safetensors(
        {"__metadata__": {"x": "y"}, "a": st_entry(), "b": st_entry(8, 16)}, bytes(16)
    )
    raw = mutated(raw, random.Random(seed))
    try:
        header = read_safe(raw)
    except UnsafeInput:
        return
    assert sum(t.size_bytes for t in header.tensors) == len(raw) - header.data_offset


@given(st.binary(max_size=200))
@pytest.mark.fault("E3")
def test_any_bytes_as_a_safetensors_header_are_refused_or_valid(raw):
    try:
        read_safe(safetensors(b"{" + raw))
    except UnsafeInput:
        return


def test_an_index_names_the_shard_of_each_tensor():
    raw = json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors"}}).encode()
    assert read_shard_index(raw) == {"a": "x.safetensors"}


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "d/x.safetensors", "x.bin", "", 3, "a\0.safetensors"],
)
def test_an_index_that_leads_elsewhere_is_refused(shard):
    with pytest.raises(UnsafeInput, match="no safetensors file"):
        read_shard_index(json.dumps({"weight_map": {"a": shard}}).encode())


@pytest.mark.parametrize(
    "raw", [b"[]", b"{}", b'{"weight_map": []}', b"\xff", b'{"weight_map": {}}']
)
def test_an_index_that_is_none_is_refused(raw):
    with pytest.raises(UnsafeInput):
        read_shard_index(raw)
