"""A bundle as one file: a tar whose every byte follows from the manifest, in frames of zstd."""
