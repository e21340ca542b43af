"""From bytes to pixels, by a policy that is part of model_id.

policies.py      which decoder a policy takes, and Pillow for all that the others leave
formats.py       which formats are decoded, and what to say of the others
jpeg.py          JPEG on a CPU: libjpeg-turbo, then the resize
nvjpeg.py        JPEG in groups on a GPU
isolated.py      in child processes, what may kill or stall a process
child.py         such a child
header.py        what a JPEG says beside its pixels
sizes.py         how many pixels a file of any format says it has
costs.py         which files would take seconds, told without decoding
geometry.py      where the crop lies
resampling.py    resize and crop in one go
kernel.py        the loops of it, in Python that numba compiles
machine_code.py  Python compiled once on a machine, and kept
"""
