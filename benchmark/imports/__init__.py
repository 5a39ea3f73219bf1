"""Somebody's checkpoint -> a change of a base, with a record of what was read.

In: a file, a folder or a hub id in one of the formats that projects of the field release, and a base. Out: a folder
with the change as safetensors and `import.json`, which a config names under `files:`. The commands import it; a run
reads such a folder, and never the checkpoint itself.
"""
