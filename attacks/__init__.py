"""Attacks: one file each, one class with one verb, `finetune` or `search`."""
