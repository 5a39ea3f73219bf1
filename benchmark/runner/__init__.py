"""Tasks -> results in the store.

In: a plan, and a bench with a base and a store. Out: an outcome; what was computed lies in the store. `stages` are the
only places that call a plug-in, `executors` decide where. Imported by the session and the commands alone.
"""
