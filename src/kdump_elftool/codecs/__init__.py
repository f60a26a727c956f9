"""Codecs: pages in batches; streams around a whole file."""
