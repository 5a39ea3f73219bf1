"""Store -> tables and report.

In: a plan and what the store has of it. Out: the frames that `leaderboards` reads, the files of a run's folder, the
report. Nothing here computes a result. Imported by the session and the commands alone.
"""
