"""Keeping the cache small.

counting.py     rows of a query: exactly where they are few, else what the database estimates, or a sample tells
stats.py        what the cache holds, and what it takes on disk
retention.py    what is to go: rules, and the conditions that they become
pruning.py      removing it in short transactions, beside runs that are under way
dropping.py     all predictions of a model
"""
