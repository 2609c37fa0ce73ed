"""The station: what runs at the far end, for a person with no network.

It serves one bundle on this machine only: a page to ask questions (answers cite the articles they
come from), search over all corpora, a reader, and an OpenAI-compatible API for other programs.
It imports nothing of the build side; a test holds this.

Where to read first: `serving` (sockets, start and end), `application` (which address does what),
`answering` (question → passages → prompt → cited answer), `guard` (who may ask at all).
"""
