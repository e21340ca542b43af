"""Damaged and odd files for the decoder: made here, and taken from Pillow's own tests.

samples.py    small files of every format and mode that is decoded
mutating.py   what is done to them, by a seed
corpus.py     Pillow's test images on this machine, and folders of mutated files
running.py    one pipeline run over a folder in a process of its own, with its memory measured
oracle.py     what must hold of the decoder for any bytes
loop.py       make fuzz: mutate and decode until the time is over, in processes that may die
"""
