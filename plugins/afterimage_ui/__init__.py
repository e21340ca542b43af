"""The pages inside the Airflow UI. They read the cache through its views and decode nobody's bytes."""
