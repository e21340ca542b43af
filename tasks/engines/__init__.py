"""Where shards run when Airflow does not decide it."""
