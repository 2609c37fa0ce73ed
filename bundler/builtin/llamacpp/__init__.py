"""The llama.cpp engine: safetensors to GGUF, quantization, measurement; all in child processes."""
