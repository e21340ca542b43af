"""The pages inside the Airflow UI. They read the cache and decode nobody's bytes.

app       which routes there are
pages/    a module for each page: its routes, and what its template is given
access    who may see and do what
shell     templates, filters of text and numbers, how a problem is told
caches    the cache that the pages read, and how long they may ask
"""
