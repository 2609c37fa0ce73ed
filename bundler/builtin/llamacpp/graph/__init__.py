"""The compute graphs llama.cpp builds, and how ggml lays their tensors out in memory.

Nothing here computes: tensors have a shape and a size, and no data. `families` describes the graph
of each architecture, `allocator` places its tensors as ggml does, `reserve` asks both for the size
of the compute buffers.
"""
