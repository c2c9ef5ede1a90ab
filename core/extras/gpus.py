"""GPUs by name: their peak FLOP/s, for MFU."""

import re

import torch

# Dense bf16 (fp16 before Ampere) peaks in TFLOP/s from the makers' data sheets. The first entry
# whose words all stand in the device's own name counts.
PEAK_TFLOPS = {"B200": 2250, "H200 NVL": 835, "H200": 989, "GH200": 989, "H100 NVL": 835}
PEAK_TFLOPS |= {"H100 PCIe": 756, "H100": 989, "H800 PCIe": 756, "H800": 989, "H20": 148}
PEAK_TFLOPS |= {"A100": 312, "A800": 312, "A10": 125, "A10G": 70, "A30": 165, "A40": 150}
PEAK_TFLOPS |= {"V100 PCIE": 112, "V100": 125, "L40S": 362, "L40": 181, "L4": 121, "T4": 65}
PEAK_TFLOPS |= {"A6000": 155, "6000 Ada": 364, "5090": 210, "4090": 165, "4080 SUPER": 104}
PEAK_TFLOPS |= {"4080": 97, "3090 Ti": 80, "3090": 71}
# words of another GPU than that of the same name without them, or of a part of it
VARIANTS = {"Ti", "SUPER", "D", "Laptop", "Ada", "Max", "MIG"}


def peak_flops(device: torch.device) -> float:
    """The GPU's peak FLOP/s, 0 if unknown."""
    words = set(re.split("[ -]", torch.cuda.get_device_name(device)))
    for name, peak in PEAK_TFLOPS.items():
        known = set(name.split())
        if known <= words and not words & VARIANTS - known:
            return peak * 1e12
    return 0.0
