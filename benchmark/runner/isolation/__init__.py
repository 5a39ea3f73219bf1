"""A plug-in's call changes nothing but its result: what it changed beside that is found, named and put back.

surroundings   the process: default dtype, grad mode, threads, folder, signals, ...
patches        functions and classes of torch, diffusers and our own that somebody replaced
seal           the base: weights, hooks, modes, schedule, tokenizers
guard          one call between two looks at all of them
"""
