"""An S3 server in a process of its own, with faults by rule: `python -m tests.faults.fake_s3 PORT`.

objects.py   buckets, keys in byte order, multipart uploads; a bucket keys-1000000 has a million keys and keeps none
rules.py     which requests a fault strikes, and how often it did
answers.py   right answers, and how each fault spoils them
server.py    HTTP, the operations of S3, and the control under /_faults
control.py   the test's side: it starts the process, and speaks to /_faults

It does what AWS does and other servers do not: a multipart upload carries the moment at which it began. It checks no
signature.
"""
