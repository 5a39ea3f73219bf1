"""A run for people: one HTML file that opens without a network, and the same figures for a paper.

page.py       plan, store and board -> report/index.html
weak.py       what weakens the numbers, told first
tables.py     which columns; columns.py their words and meanings, fields.py one field
pictures.py   images.parquet -> thumbnails with the judge's verdicts; gallery.py pairs them by seed, story.py picks one
figures.py    matplotlib -> PDF, PNG and SVG: curves.py, tradeoff.py with labels.py, heat maps; svg.py for a page
series.py     what the figures show, and how a defense looks in them; legend.py says so
sketch.py     the figures of a large board, in a second process
template.html.j2, style.css, script.js   what the page is made of; the tables sort and filter with DataTables (itables)
"""
