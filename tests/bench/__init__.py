"""How fast titer is: ratios to what people would write without it, each measured in one run.

    python -m tests.bench             every line, as `make bench`
    python -m tests.bench --only NAME one line
    python -m tests.bench --list      their names

The machine may be busy with other things, so nothing here is judged by seconds alone where two things can be compared:
ours and theirs run in turn, A B A B ..., and a ratio comes from neighbours in time. Threads: as OMP_NUM_THREADS says.
"""
