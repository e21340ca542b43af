"""`python docker/answers.py URL`: end well if the URL answers with a success. The image has no curl."""

import sys
from urllib.request import urlopen

with urlopen(sys.argv[1], timeout=8):  # noqa: S310 -- the URL stands in docker-compose.yaml
    pass
