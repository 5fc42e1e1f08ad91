"""Does Expand-Shrink-Learning pay, and which of its knobs make it pay? A study that can be rerun.

    python -m benchmarks.pays run --data FOLDER      # goes on where it was stopped
    python -m benchmarks.pays show                   # the tables
    python -m benchmarks.pays draw docs/images       # the curves

Every training is one line of `results.jsonl`, beside this file: what it was, what it gave on
validation and on test data, what it cost. Whatever is there is not run again.
"""
