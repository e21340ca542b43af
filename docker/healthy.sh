#!/bin/sh
# `docker/healthy.sh [COMMAND]`: whether what this container runs answers. For containers that nobody else asks: services of
# docker-compose.yaml have checks of their own, and so have the pods of a chart. COMMAND is the container's by default.
command=${1:-$(tr '\0' ' ' </proc/1/cmdline)}

case " $command " in
    *" celery worker "*)
        # Without Airflow's own Celery application, which takes six seconds of a processor to import.
        CELERY_BROKER_URL=$AIRFLOW__CELERY__BROKER_URL exec celery inspect --timeout 10 --destination "celery@$HOSTNAME" ping
        ;;
    *" api-server "*) exec python docker/answers.py http://127.0.0.1:8080/api/v2/monitor/health ;;
    *" scheduler "*) exec python docker/answers.py http://127.0.0.1:8974/health ;;
esac
