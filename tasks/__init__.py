"""The program: from objects in storage to predictions in SQL. It knows no Airflow."""
