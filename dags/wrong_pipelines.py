"""Tables of pipelines.toml that are wrong: Airflow shows them as the import error of this file, which holds no DAG.

predict_images.py builds the DAGs of the tables that are right, so that one typing error does not stop all pipelines.
"""

from __future__ import annotations

from tasks.pipelines import load_pipelines
from tasks.settings import load_settings

load_pipelines(load_settings().pipelines)
