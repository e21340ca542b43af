"""What the pages in the Airflow UI ask the cache. Every question is bounded: by a limit, by an index, or by sums of runs."""
