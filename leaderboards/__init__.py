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
walk.py         is a concept back, by as few images as tell; presence that rises with the budget
panel.py        cells as arrays; curves and worst case
confirm.py      the worst arm of a row by fresh images, which did not name it
corrected.py    presence by a judge's true and false positive rates
row.py          one defense: its line of the leaderboard
boundary.py     when a pair may be decided before all images are drawn
race.py         which arms cannot be the worst, and differences between those left
decide.py       what to draw next, from the scores so far
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
