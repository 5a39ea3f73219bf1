"""Leaderboards: per-image scores -> tidy cells -> statistics -> CSV. Imports no torch and nothing of `benchmark`.

cells.py      numbers and status of each cell
intervals.py  Wilson, bootstrap, paired difference, Holm
titer.py      budget withstood, with censoring; Kaplan-Meier median
panel.py      the cells of one defense as an array; curves and worst case
board.py      build(scores, cells, costs) -> Board; Board.write(folder)
"""
