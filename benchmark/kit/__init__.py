"""For authors of plug-ins: the conformance suite, and `titer new`, which starts one.

In: a plug-in's class. Out: what is wrong with it, or a new package. Only the commands import it.
"""
