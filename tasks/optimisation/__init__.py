"""Smaller and faster models, and the proof that they are still right.

sample.py     images under a URI -> crops, for calibration, judging and distillation
"""
