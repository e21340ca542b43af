"""Predictions as a Parquet file, out of a cache and into another one.

layout.py      what such a file holds
writing.py     export: row group by row group, and the file is there as a whole or not at all
checking.py    what is believed of a file, whoever made it
reading.py     import: sorted batches, and what is there stays
"""
