"""Metrics: images in, numbers out, one file each."""
