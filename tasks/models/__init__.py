"""Model bundles: from a model URI to a forward pass.

bundle.py         model.toml and its files -> Bundle
spec.py           what a bundle says, as plain values
manifest.py       model.toml checked, by pydantic
fingerprint.py    a bundle -> model_id, without torch
resolving.py      a model URI -> a bundle folder
architectures.py  the allow-list of network shapes
loading.py        a bundle -> an eager torch module
runtimes/         a bundle -> something that runs batches on a device
"""
