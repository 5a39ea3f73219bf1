"""Prompts and pictures from the user's own files: published sets, in any of the formats they come in."""
