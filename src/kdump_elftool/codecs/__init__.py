"""Codecs: pages in batches."""
