"""Step 3: a shard -> predictions.

reading.py    ImageObject -> bytes and digest
in_flight.py  how many objects are read at the same time
decoding/     bytes -> pixels, by a named policy
pixels.py     memory for decoded pictures, used again
thumbnails.py decoded pictures -> small JPEGs for the pages
scoring.py    logits -> label, score, margin, entropy, top-k
stages.py     stages side by side in threads
queues.py     what joins them, bounded in items and bytes
meters.py     what each stage counts and times
chain.py      the stages of a shard, joined
twins.py      the same bytes twice in flight
verdict.py    is it the image, or is it the world?
shard.py      all of it, with commits
"""
