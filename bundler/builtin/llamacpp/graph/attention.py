"""Attention as shapes: `build_attn` and `build_attn_mha` of src/llama-graph.cpp."""

from __future__ import annotations

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.pieces import AttentionInputs, Pieces
from bundler.builtin.llamacpp.graph.tensors import Tensor, held, like, product


class Attending(Pieces):
    """Adds attention to a graph."""

    def cached_attention(
        self, layer: int, inputs: AttentionInputs, queries: Tensor, keys: Tensor, values: Tensor,
        *, sinks: Tensor | None = None, capped: bool = False,
    ) -> Tensor:  # fmt: skip
        """`build_attn` with a KV cache, and its output matrix."""
        if inputs.key_rotation is not None:
            queries = _rotated(queries, inputs.key_rotation)
            keys = _rotated(keys, inputs.key_rotation)
        if inputs.value_rotation is not None:
            values = _rotated(values, inputs.value_rotation)
        windows = self.facts.sliding_window_tokens
        for tensor in (queries, keys, values) if windows else (queries, values, keys):
            self.graph.expand(tensor)
        key_cache, value_cache = self._caches(layer, inputs, keys, values)
        found = self.attention(
            queries, key_cache, value_cache, inputs.mask, sinks=sinks, capped=capped
        )
        if inputs.value_rotation is not None:
            found = _rotated(found, inputs.value_rotation)
        return self.dense(layer, "attn_output", found)

    def key_attention(
        self, layer: int, inputs: AttentionInputs, queries: Tensor, keys: Tensor, values: Tensor,
        expand_values: Tensor,
    ) -> Tensor:  # fmt: skip
        """`build_attn` on latent rows, which are keys and, cut short, values."""
        for tensor in (queries, values, keys):
            self.graph.expand(tensor)
        heads, width, streams, cells = keys.ne[1], keys.ne[0], self.run.parallel, inputs.cells
        cache = held(
            self.cache_type, heads * width, cells, streams, backend=self.homes[layer],
            name=f"cache_k_l{layer}",
        )  # fmt: skip
        rows = ggml.view(keys, (heads * width, self.tokens), (keys.nb[2],))
        self.graph.expand(ggml.set_rows(self._merged(cache), rows, inputs.key_rows))
        stored = _cache_view(cache, width, heads, cells, streams)
        short = ggml.view(stored, (values.ne[0], *stored.ne[1:]), stored.nb[1:])
        found = self.attention(queries, stored, short, inputs.mask, expand_values=expand_values)
        return self.dense(layer, "attn_output", found)

    def _caches(
        self, layer: int, inputs: AttentionInputs, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (`cpy_k`, `cpy_v`); return views of all (`get_k`, `get_v`)."""
        heads, cells, streams = keys.ne[1], inputs.cells, self.run.parallel
        wide, deep = heads * keys.ne[0], heads * values.ne[0]
        home, type_ = self.homes[layer], self.cache_type
        key_cache = held(type_, wide, cells, streams, backend=home, name=f"cache_k_l{layer}")
        value_cache = held(type_, deep, cells, streams, backend=home, name=f"cache_v_l{layer}")
        rows = ggml.view(keys, (wide, self.tokens), (keys.nb[2],))
        self.graph.expand(ggml.set_rows(self._merged(key_cache), rows, inputs.key_rows))
        if self.run.flash_attention:
            rows = ggml.view(values, (deep, self.tokens), (values.nb[2],))
            self.graph.expand(ggml.set_rows(self._merged(value_cache), rows, inputs.value_rows))
            return (
                _cache_view(key_cache, keys.ne[0], heads, cells, streams),
                _cache_view(value_cache, values.ne[0], heads, cells, streams),
            )
        if 4 * deep == values.nb[2]:
            rows = ggml.reshape(values, deep, self.tokens)
        else:
            rows = ggml.contiguous(values, deep, self.tokens)
        flat = ggml.reshape(value_cache, 1, value_cache.values)
        rows = ggml.reshape(rows, 1, rows.values)
        self.graph.expand(ggml.set_rows(flat, rows, inputs.value_rows))
        steps = [ggml.row_bytes(type_, cells * n) for n in (values.ne[0], 1, deep)]
        transposed = ggml.view(value_cache, (cells, heads, values.ne[0], streams), tuple(steps))
        return _cache_view(key_cache, keys.ne[0], heads, cells, streams), transposed

    def _merged(self, cache: Tensor) -> Tensor:
        if self.run.parallel == 1:
            return cache
        return ggml.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])

    def attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor,
        *, sinks: Tensor | None = None, expand_values: Tensor | None = None, capped: bool = False,
    ) -> Tensor:  # fmt: skip
        """`build_attn_mha`; `expand_values` is the matrix that ends latent attention."""
        transposed = values.nb[1] > values.nb[2]
        streams = keys.ne[3]
        each = queries.ne[2] // streams
        steps = (queries.nb[1], queries.nb[2], queries.nb[2] * each)
        queries = ggml.view(queries, (queries.ne[0], queries.ne[1], each, streams), steps)
        queries, keys, values = (ggml.permute(t, 0, 2, 1, 3) for t in (queries, keys, values))
        if self.run.flash_attention:
            found = self._flash(queries, keys, values, mask, transposed, sinks)
            if expand_values is not None:
                found = product(expand_values, ggml.permute(found, 0, 2, 1, 3))
                found = ggml.contiguous(ggml.permute(found, 0, 2, 1, 3))
            a, b, c, d = found.ne
            found = ggml.reshape(found, a * b, c * d)
        else:
            found = self._plain(queries, keys, values, mask, transposed, sinks, capped)
            if expand_values is not None:
                found = product(expand_values, found)
            found = ggml.permute(found, 0, 2, 1, 3)
            a, b, c, d = found.ne
            found = ggml.contiguous(found, a * b, c * d)
        self.graph.expand(found)
        return found

    def _flash(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, transposed: bool,
        sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if transposed:
            values = ggml.transpose(values)
        if keys.type == "F32":
            keys = ggml.cast(keys, "F16")
        if values.type == "F32":
            values = ggml.cast(values, "F16")
        sources = (queries, keys, values, mask, *((sinks,) if sinks is not None else ()))
        width, (_, tokens, heads, streams) = values.ne[0], queries.ne
        return ggml.new("F32", width, heads, tokens, streams, op="FLASH_ATTN_EXT", sources=sources)

    def _plain(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, transposed: bool,
        sinks: Tensor | None, capped: bool,
    ) -> Tensor:  # fmt: skip
        scores = product(keys, queries)
        if capped:
            for op in ("SCALE", "UNARY", "SCALE"):
                scores = like(op, scores)
        scores = like("SOFT_MAX", scores, mask, *((sinks,) if sinks is not None else ()))
        if not transposed:
            values = ggml.contiguous(ggml.transpose(values))
        return product(values, scores)


def _rotated(source: Tensor, rotation: Tensor) -> Tensor:
    """`llama_mul_mat_hadamard`."""
    side = rotation.ne[0]
    rows = source.values // side
    flat = (
        ggml.reshape(source, side, rows)
        if source.is_contiguous
        else ggml.contiguous(source, side, rows)
    )
    return ggml.reshape(product(rotation, flat), *source.ne)


def _cache_view(cache: Tensor, width: int, heads: int, cells: int, streams: int) -> Tensor:
    """`get_k`, and `get_v` under flash attention."""
    sizes = (width, width * heads, width * heads * cells)
    steps = tuple(ggml.row_bytes(cache.type, size) for size in sizes)
    return ggml.view(cache, (width, heads, cells, streams), steps)
