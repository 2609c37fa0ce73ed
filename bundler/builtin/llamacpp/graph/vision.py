"""The graphs of projectors, by which models see (`tools/mtmd/clip.cpp` and `models/*.cpp` there).

Described are `mlp` (LLaVA), `gemma3`, `qwen2vl_merger` and `qwen2.5vl_merger`. Each raises
NotDescribed for a file with tensors that its graph has no place for: it is another graph then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.pieces import NotDescribed
from bundler.builtin.llamacpp.graph.tensors import (
    Graph,
    Tensor,
    contiguous,
    given,
    like,
    product,
    reshape,
    weight,
)
from bundler.lock import ProjectorFacts

_COLOURS = 3
_MERGED = 2
"""Patches of each side that Qwen's projectors make one token of."""


@dataclass(frozen=True)
class Sight:
    """Sizes of a projector, from its header."""

    layers: int
    hidden: int
    heads: int
    patch: int
    image: int
    pooled: int
    """Patches of each side that Gemma's projector makes one token of."""
    window_every: int
    """Every how many layers one sees the whole image; 0 when all do."""
    projected: int

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @classmethod
    def of(cls, facts: ProjectorFacts) -> Sight:
        """Read the sizes, which were checked when the facts were made."""

        def number(name: str, default: int = 0) -> int:
            return int(str(facts.fields.get(f"clip.vision.{name}", default)))

        return cls(
            number("block_count"), number("embedding_length"), number("attention.head_count"),
            number("patch_size"), number("image_size"), number("projector.scale_factor", 4),
            number("n_wa_pattern"), number("projection_dim"),
        )  # fmt: skip


class Eye:
    """Holds a projector's tensors and the graph so far."""

    def __init__(self, facts: ProjectorFacts, side: tuple[int, int], *, flash: bool) -> None:
        """`side` is the image's, in patches; `flash` is whether there is flash attention."""
        self.sight = Sight.of(facts)
        self.shapes = {t.name: (t.type, tuple(reversed(t.shape))) for t in facts.tensors}
        self.side = side
        self.flash = flash
        self.graph = Graph()
        self._made: dict[str, Tensor] = {}

    @property
    def patches(self) -> int:
        """How many patches the image has."""
        return self.side[0] * self.side[1]

    def get(self, name: str) -> Tensor | None:
        """Return a tensor, the same one each time, or None."""
        if name not in self.shapes:
            return None
        if name not in self._made:
            type_, ne = self.shapes[name]
            self._made[name] = weight(type_, *ne, backend=0, name=name)
        return self._made[name]

    def need(self, name: str) -> Tensor:
        """Return a tensor that the graph cannot do without."""
        found = self.get(name)
        if found is None:
            raise NotDescribed(f"it has no {name}")
        return found

    def check_all_used(self, also: frozenset[str] = frozenset(), prefix: str = "") -> None:
        """Raise NotDescribed for tensors without a place; some are loaded and not used."""
        for name in self.shapes:
            unused = prefix and name.startswith(prefix)
            if name not in self._made and name not in also and not unused:
                raise NotDescribed(f"it has {name}, which is not known here")

    def convolved(self, kernel: Tensor, picture: Tensor) -> Tensor:
        """`ggml_conv_2d` of patches that do not overlap."""
        width, height, colours, out = kernel.ne
        type_ = "F32" if kernel.stored_type == "BF16" else "F16"
        patch = self.sight.patch
        columns = ggml.new(
            type_, colours * height * width, picture.ne[0] // patch, picture.ne[1] // patch,
            picture.ne[3], op="IM2COL", sources=(kernel, picture),
        )  # fmt: skip
        rows = columns.ne[1] * columns.ne[2] * columns.ne[3]
        found = product(
            reshape(columns, columns.ne[0], rows), reshape(kernel, width * height * colours, out)
        )
        found = reshape(found, columns.ne[1], columns.ne[2], columns.ne[3], out)
        return contiguous(ggml.permute(found, 0, 1, 3, 2))

    def picture(self) -> Tensor:
        """`build_inp_raw`."""
        across, down = (count * self.sight.patch for count in self.side)
        return given("F32", across, down, _COLOURS, 1, name="inp_raw")

    def patch_rows(self) -> Tensor:
        """`build_inp`."""
        found = self.convolved(self.need("v.patch_embd.weight"), self.picture())
        found = contiguous(ggml.transpose(reshape(found, self.patches, self.sight.hidden, 1)))
        return self.plus(found, "v.patch_embd.bias")

    def plus(self, source: Tensor, name: str) -> Tensor:
        """Add a bias, where there is one."""
        bias = self.get(name)
        return source if bias is None else like("ADD", source, bias)

    def dense(self, source: Tensor, name: str) -> Tensor:
        """A matrix with its bias, if there is one."""
        return self.plus(product(self.need(f"{name}.weight"), source), f"{name}.bias")

    def norm(self, source: Tensor, name: str, op: str = "NORM") -> Tensor:
        """`build_norm`."""
        scale = self.get(f"{name}.weight")
        found = like(op, source)
        found = found if scale is None else like("MUL", found, scale)
        return self.plus(found, f"{name}.bias")

    def layer(
        self, number: int, state: Tensor, *, op: str = "NORM", rows: int, mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One layer of the transformer: attention and feed forward with what is added behind them."""
        name = f"v.blk.{number}"
        found = self.norm(state, f"{name}.ln1", op)
        queries, keys, values = (
            reshape(
                self.dense(found, f"{name}.attn_{part}"), self.sight.head, self.sight.heads, rows
            )
            for part in "qkv"
        )
        if positions is not None:
            queries, keys = like("ROPE", queries, positions), like("ROPE", keys, positions)
        found = self.dense(self.attention(queries, keys, values, mask), f"{name}.attn_out")
        state = like("ADD", found, state)
        found = self.norm(state, f"{name}.ln2", op)
        return like("ADD", state, self.feed_forward(number, found))

    def attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`build_attn` up to its output matrix."""
        for tensor in (queries, keys, values):
            self.graph.expand(tensor)
        queries, keys = (ggml.permute(each, 0, 2, 1, 3) for each in (queries, keys))
        if self.flash:
            keys = ggml.cast(keys, "F16")
            values = ggml.cast(ggml.permute(values, 0, 2, 1, 3), "F16")
            sources = [queries, keys, values]
            if mask is not None:
                sources.append(ggml.cast(mask, "F16"))
            _, rows, heads, _ = queries.ne
            found = ggml.new(
                "F32", values.ne[0], heads, rows, op="FLASH_ATTN_EXT", sources=tuple(sources)
            )
            a, b, c, d = found.ne
            return reshape(found, a * b, c * d)
        values = contiguous(ggml.permute(values, 1, 2, 0, 3))
        scores = product(keys, queries)
        scores = like("SOFT_MAX", scores, *((mask,) if mask is not None else ()))
        found = ggml.permute(product(values, scores), 0, 2, 1, 3)
        a, b, c, d = found.ne
        return contiguous(found, a * b, c * d)

    def feed_forward(self, number: int, source: Tensor) -> Tensor:
        """`build_ffn`; old files have up and down the other way round."""
        name = f"v.blk.{number}"
        up, down = f"{name}.ffn_up", f"{name}.ffn_down"
        if self.need(f"{down}.weight").ne[0] == self.sight.hidden:
            up, down = down, up
        found = self.dense(source, up)
        if f"{name}.ffn_gate.weight" in self.shapes:
            found = ggml.gated(self.dense(source, f"{name}.ffn_gate"), found)
        else:
            found = like("UNARY", found)
        return self.dense(found, down)


def llava(eye: Eye) -> None:
    """`clip_graph_llava`: all layers but the last, and an MLP over the patches."""
    state = eye.patch_rows()
    extra = eye.get("v.class_embd")
    if extra is not None:
        state = ggml.concat(state, extra, 1)
    rows = state.ne[1]
    positions = given("I32", rows, name="positions")
    state = like("ADD", state, ggml.get_rows(eye.need("v.position_embd.weight"), positions))
    if "v.pre_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.pre_ln")
    for number in range(eye.sight.layers - 1):
        state = eye.layer(number, state, rows=rows)
    if "v.post_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.post_ln")
    state = reshape(state, *state.ne[:2])
    found = ggml.get_rows(state, given("I32", eye.patches, name="patches"))
    found = like("UNARY", eye.dense(found, "mm.0"))
    if "mm.2.weight" in eye.shapes:
        found = eye.dense(found, "mm.2")
    eye.graph.expand(found)
    last = f"v.blk.{eye.sight.layers - 1}."
    eye.check_all_used(also=frozenset({"v.image_newline"}), prefix=last)


def gemma3(eye: Eye) -> None:
    """`clip_graph_siglip` of Gemma 3: patches are pooled before they are projected."""
    state = eye.patch_rows()
    hidden, rows = eye.sight.hidden, eye.patches
    state = like("ADD", state, eye.need("v.position_embd.weight"))
    state = reshape(state, hidden, rows)
    if "v.pre_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.pre_ln")
    for number in range(eye.sight.layers):
        state = eye.layer(number, state, rows=rows)
    if "v.post_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.post_ln")
    state = reshape(state, hidden, rows, 1)
    across = eye.side[0]
    state = contiguous(ggml.transpose(state), across, across, hidden, 1)
    side = across // eye.sight.pooled
    pooled = ggml.new("F32", side, side, hidden, 1, op="POOL_2D", sources=(state,))
    state = contiguous(ggml.transpose(reshape(pooled, side * side, hidden, 1)))
    state = like("MUL", like("RMS_NORM", state), eye.need("mm.soft_emb_norm.weight"))
    turned = _turned(eye.need("mm.input_projection.weight"))
    eye.graph.expand(product(turned, state))
    eye.check_all_used()


def _turned(matrix: Tensor) -> Tensor:
    """A copy of a weight, turned: it has the weight's own type."""
    found = contiguous(ggml.transpose(matrix))
    return ggml.new(matrix.stored_type, *found.ne, op="CONT", sources=found.sources)


def qwen(eye: Eye) -> None:
    """`clip_graph_qwen2vl`: two frames at once, windows in most layers of 2.5, four patches a token."""
    sight, rows = eye.sight, eye.patches
    picture = eye.picture()
    both = ("v.patch_embd.weight", "v.patch_embd.weight.1")
    state = like("ADD", *(eye.convolved(eye.need(name), picture) for name in both))
    state = _in_fours(state, sight.hidden, eye.side)
    positions = given("I32", rows * 4, name="positions")
    if "v.pre_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.pre_ln", _NORMS[bool(sight.window_every)])
    op = _NORMS[bool(sight.window_every)]
    mask = None
    tokens = rows // 4
    if sight.window_every:
        order = given("I32", tokens, name="inv_window_idx")
        mask = given("F32", rows, rows, name="window_mask")
        mask = ggml.cast(mask, "F16") if eye.flash else mask
        state = ggml.get_rows(reshape(state, sight.hidden * 4, tokens), order)
        state = reshape(state, sight.hidden, rows, 1)
    for number in range(sight.layers):
        whole = not sight.window_every or (number + 1) % sight.window_every == 0
        state = eye.layer(
            number, state, op=op, rows=rows, mask=None if whole else mask, positions=positions
        )
    if "v.post_ln.weight" in eye.shapes:
        state = eye.norm(state, "v.post_ln", op)
    state = reshape(state, sight.hidden * 4, tokens, 1)
    found = eye.dense(like("UNARY", eye.dense(state, "mm.0")), "mm.2")
    if sight.window_every:
        order = given("I32", tokens, name="window_idx")
        found = ggml.get_rows(reshape(found, sight.projected, tokens), order)
        found = reshape(found, sight.projected, tokens, 1)
    eye.graph.expand(found)
    eye.check_all_used()


_NORMS = {False: "NORM", True: "RMS_NORM"}


def _in_fours(state: Tensor, hidden: int, side: tuple[int, int]) -> Tensor:
    """Bring the patches that become one token next to each other."""
    across, down = side
    state = contiguous(ggml.permute(state, 1, 2, 0, 3), hidden * 2, across // 2, down, 1)
    state = reshape(state, hidden * 2, across // 2, 2, down // 2)
    return contiguous(ggml.permute(state, 0, 2, 1, 3), hidden, across * down, 1)


PROJECTORS: Mapping[str, Callable[[Eye], None]] = {
    "mlp": llava,
    "gemma3": gemma3,
    "qwen2vl_merger": qwen,
    "qwen2.5vl_merger": qwen,
}
"""llama.cpp's name of a projector → what builds its graph."""
