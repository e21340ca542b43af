"""Step 3: a shard -> predictions.

reading.py    ImageObject -> bytes and digest
decoding.py   bytes -> pixels, by a named policy
jpeg.py       the faster road for JPEG
header.py     what a JPEG says before its pixels
nvjpeg.py     JPEG in groups on a GPU
geometry.py   where the crop lies
resampling.py resize and crop in one go
kernel.py     the loops of it, compiled
machine_code.py  Python compiled once and kept
pixels.py     memory for decoded pictures, used again
scoring.py    logits -> label, score, margin, entropy, top-k
stages.py     stages side by side in threads, joined by bounded queues
twins.py      the same bytes twice in flight
verdict.py    is it the image, or is it the world?
shard.py      all of it, with commits
"""
