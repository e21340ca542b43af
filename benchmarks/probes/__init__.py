"""What must run in a process of its own: each prints one JSON object, the last line of its output.

The harness itself imports no torch, no numpy and no OpenVINO, so that it shares no memory with what it measures.
"""
