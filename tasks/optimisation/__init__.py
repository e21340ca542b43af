"""Smaller and faster models, and the proof that they are still right.

sample.py     images under a URI -> crops, for calibration, judging and distillation
truth.py      a CSV of labels -> what is really on the images
tuning.py     two models -> the margin of their cascade
"""
