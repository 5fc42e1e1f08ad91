"""Does Expand-Shrink-Learning pay, and which of its knobs make it pay? A study that can be rerun.

    python -m benchmarks.pays run rate saturation baselines knobs --data FOLDER
    python -m benchmarks.pays show baselines knobs   # the tables
    python -m benchmarks.pays draw baselines         # the curves, into docs/images
    python -m benchmarks.pays write                  # the tables, into the page about it
    python -m benchmarks.pays time --data FOLDER     # what updates cost in time

Every training is one line of `results.jsonl`, beside this file: what it was, what it gave on
validation and on test data, what it cost. Whatever is there is not run again.
"""
