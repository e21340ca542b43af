"""The demo: scans of handwritten digits, a small network that reads them, and the pipeline run twice.

bucket.py    1,797 scans, and the objects that make a bucket real
network.py   a small CNN, trained on one half of the scans
report.py    what the rows in the cache say
__main__.py  prepare | report
"""
