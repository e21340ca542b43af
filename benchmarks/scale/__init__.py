"""What listing and the cache do with millions of objects, on two cores.

objects.py   the objects of the synthetic bucket: all of them computed from their number, in Python and in SQL
store.py     a process that lists them as S3 does, in the memory of a page
listing.py   keys a second of the reader of answers, and of a listing from end to end
"""
