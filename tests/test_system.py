"""Attacks: what a machine is believed to be able to do.

Run: pytest tests/test_runtime.py
"""

import pytest
import torch

from swav import system
from swav.system import available_memory, computes_in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "vendor", "fast"),
    [
        ({"avx512_bf16": True}, "GenuineIntel", False),  # measured: slower than float32
        ({"avx512_bf16": True, "amx_bf16": True}, "GenuineIntel", True),
        ({"avx512_bf16": True}, "AuthenticAMD", True),  # measured: 2.5 times as fast
        ({"avx512_bf16": False, "amx_bf16": False}, "AuthenticAMD", False),
        ({"bf16": True}, "", True),  # ARM
        ({}, "", False),
    ],
)
def test_bfloat16_is_used_where_it_is_fast(monkeypatch, flags, vendor, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(system, "_cpu_vendor", lambda: vendor)
    assert computes_in_bf16(CPU) is fast


def test_available_memory_is_bounded_by_the_control_group(monkeypatch):
    of_machine = available_memory(CPU)
    assert 10**7 < of_machine < 10**14
    monkeypatch.setattr(system, "_control_group_memory", lambda: [12345])
    assert available_memory(CPU) == 12345
