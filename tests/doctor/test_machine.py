"""What of a machine would stop a training, on machines made of stubs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sciml.doctor import machine
from sciml.doctor.disk import PROBE_BYTES, existing, filesystem, read_speed, run_folder, write_speed
from sciml.doctor.machine import driver_of_gpus, unmet


def distribution(folder: Path, name: str, *requirements: str) -> None:
    """An installed distribution, as far as its metadata go."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = [f"Requires-Dist: {requirement}" for requirement in requirements]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines, ""]))


def test_unmet_requirements_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    distribution(tmp_path, "asking", "numpy>=999", "torch>=2", "absent-thing>=1", "other>=1; extra == 'more'")
    found = unmet("asking")
    assert len(found) == 2
    assert "asking asks for numpy>=999, found" in found[0]
    assert found[1] == "asking asks for absent-thing>=1, found none"
    assert unmet("a-checkout-that-is-not-installed") == []


def stub(folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_the_driver_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    stub(tmp_path, "echo 'NVIDIA H200, 570.12'")
    assert driver_of_gpus() == ("NVIDIA H200", "570.12")
    stub(tmp_path, "echo 'no devices were found'; exit 6")
    assert driver_of_gpus() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_cannot_use_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    stub(tmp_path, "echo 'NVIDIA H200, 570.12'")
    asked = machine._gpus(devices=1)
    assert (asked.verdict, "although the driver sees NVIDIA H200" in asked.found) == ("problem", True)
    assert machine._cpu_only("auto").verdict == "problem"
    stub(tmp_path, "exit 9")
    assert machine._cpu_only("cpu").verdict == "ok"


@pytest.mark.parametrize(
    ("built", "architecture", "serves"),
    [("sm_90", "sm_90", True), ("sm_80", "sm_86", True), ("sm_90", "sm_80", False), ("sm_75", "sm_80", False)],
)
def test_code_of_an_architecture_serves_newer_ones_of_its_line(built, architecture, serves):
    assert machine._serves(built, architecture) is serves


def test_more_threads_than_cores_are_named():
    cores = len(os.sched_getaffinity(0))
    assert machine._cores(SimpleNamespace(threads=cores, devices=1)).verdict == "ok"
    assert machine._cores(SimpleNamespace(threads=cores, devices=2)).verdict == "warning"


def test_plain_torch_kernels_are_named():
    assert machine._kernels("reference", "cpu").verdict == "warning"


def test_a_disk_without_room_is_a_problem(tmp_path):
    found = run_folder(tmp_path / "runs" / "mine", checkpoint_bytes=2**60, kept=20)
    assert (found.verdict, "needed by 22 checkpoints" in found.found) == ("problem", True)
    fits = run_folder(tmp_path / "runs" / "mine", checkpoint_bytes=2**20, kept=3)
    assert (fits.verdict, "so one of 1.0 MiB takes" in fits.found) == ("ok", True)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_temporary_folder_elsewhere_is_said(tmp_path, monkeypatch):
    from sciml.doctor.disk import _temporary

    monkeypatch.setenv("TMPDIR", "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/")
    assert "on another filesystem than the run" in _temporary(tmp_path).found
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert "on the filesystem of the run" in _temporary(tmp_path).found
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert _temporary(tmp_path).verdict == "problem"


def test_speeds_are_of_the_bytes_that_were_moved(tmp_path):
    assert write_speed(tmp_path, 2**20) > 0
    (tmp_path / "file").write_bytes(b"0" * 1000)
    assert read_speed(tmp_path / "file")[0] == 1000 < PROBE_BYTES
    assert existing(tmp_path / "a" / "b") == tmp_path.resolve()
    assert filesystem(Path("/proc/self/stat")).startswith("/proc (proc")
