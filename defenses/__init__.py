"""Defenses: one paper, one file, one class with one verb, `protect`."""
