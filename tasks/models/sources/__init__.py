"""What users have -> a bundle folder. Each module fills a folder that exists.

named.py               torchvision:NAME and timm:NAME, with weights and labels of files
torchvision_source.py  what torchvision knows of its networks
timm_source.py         what timm knows of its networks
onnx_source.py         a file of ONNX, from whatever exported it
exported_source.py     a file of torch.export.save
trial.py               a network is tried before it becomes a bundle
filling.py             a folder is there as a whole, or not at all
"""

from __future__ import annotations

from tasks.models.spec import Preprocessing

# What most networks that were trained on ImageNet take; the default where a file says nothing of it.
IMAGENET = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
