"""Post-training quantisation of a converted network, by NNCF's defaults; runs in the peers' environment, which has NNCF.

    python -m benchmarks.probes.quantising MODEL.xml PHOTOGRAPHS OUT.xml

Its input stays uint8 and its output float32, so it takes the place of the network that it was made from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import openvino as ov

from benchmarks.peers.contract import crop_pixels


def main(source: Path, photographs: Path, out: Path) -> None:
    """Calibrate on all photographs of the folder."""
    crops = [crop_pixels(str(path))[None] for path in sorted(photographs.iterdir())]
    model = nncf.quantize(
        ov.Core().read_model(source),
        nncf.Dataset(crops),
        # The documentation's advice for networks with other activations than ReLU, such as MobileNetV3's h-swish.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(crops),
    )
    quantised = sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    out.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, out, compress_to_fp16=False)
    print(json.dumps({"calibrated_on": len(crops), "quantisers": quantised}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
