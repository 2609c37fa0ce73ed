"""Corpora: ready ZIM files, and folders of documents that become one."""
