"""Do the compiled libraries load? Being installed is not enough: tried in child processes, since one
that was built for another processor ends the process that loads it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

from bundler.doctor.findings import Finding

COMPILED: Mapping[str, str] = {
    "numpy": "converting and measuring models",
    "sentencepiece": "vocabularies of Llama and Mistral models",
    "tokenizers": "vocabularies of most other models",
    "libzim": "corpora",
    "pypdfium2": "PDF documents",
    "selectolax": "HTML documents",
    "xllamacpp": "serving models from a bundle",
}
"""Module → what cannot be done without it."""
_SECONDS = 60.0


def compiled_libraries(modules: Mapping[str, str] = COMPILED) -> Iterator[Finding]:
    """Yield one finding when all load, else one for each that does not."""
    if not _fault(*modules):
        said = f"{', '.join(modules)} load"
        yield Finding(topic="software", name="compiled parts", state="good", said=said)
        return
    for module, purpose in modules.items():
        fault = _fault(module)
        if fault:
            yield Finding(
                topic="software", name=module, state="warning",
                said=f"does not load ({fault}); needed for {purpose}",
                remedy=f"pip install --force-reinstall {module}; where it was built for a newer "
                f"processor: --no-binary {module}",
            )  # fmt: skip


def _fault(*modules: str) -> str:
    """Return why these modules cannot be imported together in a fresh Python; empty when they can."""
    # -P: what lies in the current folder is not imported.
    code = f"import {', '.join(modules)}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True,
            timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        known = -done.returncode in set(signal.Signals)
        return signal.Signals(-done.returncode).name if known else f"signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {done.returncode}"
