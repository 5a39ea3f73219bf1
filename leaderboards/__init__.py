"""Leaderboards: per-image scores -> tidy cells -> statistics -> CSV. Imports no torch and nothing of `benchmark`.

evidence.py     score rows -> prompt means of each cell
bootstrap.py    draws over concepts, attack seeds and prompts
student.py      tails and quantiles of Student's t
intervals.py    Wilson, percentile and t-intervals, p-values, Holm
cells.py        numbers and status of each cell
recovery.py     reactivation rate, recovered share of a cell
reactivation.py reactivation rate pooled over cells
agreement.py    two judges on the same images: disagreement, Cohen's kappa
gap.py          SGR: the relative gap of similarity to the base
titer.py        budget withstood, with censoring; Kaplan-Meier median; area under the effort curve
panel.py        cells as arrays; curves and worst case
row.py          one defense: its line of the leaderboard
comparisons.py  paired differences of each pair of defenses
pareto.py       who is not dominated, and in how many draws
variance.py     presence by source of its variance
ranks.py        who has a rank, which, and who has none and why
board.py        build(scores, cells, costs, distances) -> Board; Board.write(folder)
rebuild.py      the tables again from an old board's cells
claims.py       what papers claim, beside what a run measured
files.py        tables as CSV, Markdown and Parquet
merge.py        combine(tables of several runs), or why not
"""
