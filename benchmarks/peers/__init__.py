"""The other ways to do the same work, each in the environment of requirements-bench.txt and in a process of its own.

    sequential.py   open, transform, batch, forward, in a loop
    dataloader.py   Dataset and DataLoader: the textbook answer
    ray_data.py     Ray Data
    daft_frame.py   Daft
    spdl_loader.py  SPDL

Each of them has the form that its documentation shows, with eager torch, and a `tuned` form, with OpenVINO and all that we
know to make it fast. They import nothing of Afterimage: only contract.py, which holds what must be the same for all.
"""
