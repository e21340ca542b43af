"""Tables of pipelines.toml that are wrong: Airflow shows them as the import error of this file, which holds no DAG.

predict_images.py builds the DAGs of the tables that are right, so that one typing error does not stop all pipelines. A notifier
that is not there is told of here as well, rather than when it is needed; its pipeline runs.
"""

from __future__ import annotations

from tasks.notifiers import check_modules
from tasks.pipelines import load_pipelines
from tasks.settings import load_settings

for _name, _pipeline in load_pipelines(load_settings().pipelines).items():
    check_modules(_name, _pipeline.notify)
