"""The machine: devices, formats, peaks."""

import pytest
import torch

from core import UserError, device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Some GPU of 2031", None),
    ],
)
def test_the_peak_is_known_by_name(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device.peak_flops(CUDA, 0.0) == (tflops and tflops * 1e12)
    assert device.peak_flops(CUDA, 500.0) == 500e12


def test_a_cpu_has_no_peak_unless_told():
    assert device.peak_flops(CPU, 0.0) is None and device.peak_flops(CPU, 0.5) == 5e11


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
