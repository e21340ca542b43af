"""The demo: scans of handwritten digits, a small network that reads them, and the pipeline run twice.

bucket.py         1,797 scans, and the objects that make a bucket real
network.py        a small CNN, trained on one half of the scans
local_airflow.py  this machine's Airflow, made ready
report.py         what the rows in the cache say
seed.py           the same bucket and model in an S3 store
ui.py             Airflow in the browser
metadata.py       PostgreSQL for that Airflow
__main__.py       prepare, run twice, report
"""
