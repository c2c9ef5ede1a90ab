"""The machine: devices, formats, peaks."""

import pytest
import torch

from core import UserError, device
from core.extras import gpus

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


PEAKS = {  # what torch.cuda.get_device_name() says -> TFLOP/s, 0 if unknown
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 0,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": 0,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H800": 989,
    "NVIDIA H20": 148,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A800-SXM4-80GB": 312,
    "A100-SXM4-40GB": 312,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA A16": 0,
    "NVIDIA A2": 0,
    "NVIDIA A30": 165,
    "NVIDIA A40": 150,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "Tesla T4": 65,
    "NVIDIA T400 4GB": 0,
    "NVIDIA RTX A4000": 0,
    "NVIDIA RTX A6000": 155,
    "NVIDIA RTX 6000 Ada Generation": 364,
    "NVIDIA RTX 4000 Ada Generation": 0,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 0,
    "Quadro RTX 6000": 0,
    "NVIDIA GeForce RTX 5090": 210,
    "NVIDIA GeForce RTX 5090 D": 0,
    "NVIDIA GeForce RTX 5090 Laptop GPU": 0,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 4090 D": 0,
    "NVIDIA GeForce RTX 4090 Laptop GPU": 0,
    "NVIDIA GeForce RTX 4080": 97,
    "NVIDIA GeForce RTX 4080 SUPER": 104,
    "NVIDIA GeForce RTX 4070 Ti SUPER": 0,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 3090 Ti": 80,
    "NVIDIA GeForce GTX 1080 Ti": 0,
    "Some GPU of 2031": 0,
}


@pytest.mark.parametrize(("name", "tflops"), PEAKS.items())
def test_the_peak_is_known_by_name(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpus.peak_flops(CUDA) == tflops * 1e12


def test_each_process_takes_the_gpu_of_its_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert device.choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:2 is not there: this machine has 2 GPUs"):
        device.choose_device("cuda:2")
    monkeypatch.setattr(device, "WORLD_SIZE", 2)
    monkeypatch.setattr(device, "LOCAL_RANK", 1)
    assert device.choose_device("auto") == torch.device("cuda", 1)
    assert device.choose_device("cpu") == CPU
    monkeypatch.setattr(device, "LOCAL_RANK", 2)
    with pytest.raises(UserError, match="this machine has 2 GPUs"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.choose_device("auto") == CPU


def test_the_format_follows_the_hardware(monkeypatch):
    for bf16, capability, expected in (
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (6, 1), torch.float32),
    ):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)  # noqa: B023
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)  # noqa: B023
        assert device.choose_dtype("auto", CUDA) == expected
    assert device.choose_dtype("float16", CUDA) == torch.float16


def test_a_cpu_multiplies_in_bf16_where_it_can(monkeypatch):
    monkeypatch.setattr(device, "cpu_capabilities", lambda: {"amx_bf16": True})
    assert device.choose_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(device, "cpu_capabilities", dict)
    assert device.choose_dtype("auto", CPU) == torch.float32
