"""The DAGs of the farm's pipelines, as predict_images builds them for Airflow, with two changes for tests.

A shard whose worker died is tried again after a second, not after half a minute, and networks run as farm_runtimes.py says.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import predict_images

from tasks import road
from tasks.pipelines import load_pipelines
from tests import farm_runtimes

road.predict_shard = farm_runtimes.predict_shard

for pipeline in load_pipelines(Path(os.environ["FARM_PIPELINES"])).values():
    dag = predict_images.build(pipeline)
    for step in dag.tasks:
        step.retry_delay = timedelta(seconds=1)
        step.retry_exponential_backoff = 0
