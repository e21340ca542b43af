"""Smaller and faster models, and the proof that they are still right.

sample.py       images under a URI -> crops, for calibration, judging and distillation
choosing.py     which images teach and which judge
truth.py        a CSV of labels -> {key: label}
comparing.py    what several bundles answer to the same images
figures.py      agreement, accuracy and what is lost; the gate
rounds.py       the process that runs one model's forward pass, and measuring.py, which asks several of them in turn
producing.py    make, compare, keep or remove; report.py and charts.py tell of it
making.py       the table of makers: quantising.py (int8), halving.py (bf16, fp16)
optimising.py   `./afterimage models optimise`
tuning.py       two models -> the margin of their cascade
pruning.py      fewer channels; importance.py, what they are worth; costs.py, what a network costs
reconstructing.py  the weights that are left, fitted by least squares
distilling.py   a student learns its teacher's answers; checkpoints.py, which a kill does not undo
recovering.py   `./afterimage models prune`
"""
