"""Fakes and contract checks for authors of plugins, used by our own tests as well."""
