"""A run for people: one HTML file that opens without a network, and the same figures for a paper.

page.py       plan, store and board -> report/index.html
gallery.py    images.parquet -> thumbnails with the judge's verdicts, paired by seed; no torch
figures.py    matplotlib: presence over budget, Pareto plot, heat map; as inline SVG, PDF and PNG
series.py     what the figures show, and how a defense looks in them
sketch.py     the figures of a large board, in a second process
template.html.j2, style.css, script.js   what the page is made of; the tables sort and filter with DataTables (itables)
"""
