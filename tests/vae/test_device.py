"""Which GPU a process may see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvaeopt.errors import DeviceError
from cvaeopt.vae import device


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set before it is deleted, so that what a test leaves behind is undone.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def has_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


@pytest.mark.parametrize(
    ("visible", "index", "chosen"),
    [
        (None, "0", "0"),
        (None, "5", "5"),
        ("2,3", "1", "3"),
        (" 2 , 3 ", "0", "2"),
        ("GPU-8f1,MIG-77", "1", "MIG-77"),
    ],
)
def test_an_index_counts_within_what_the_scheduler_left_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, index: str, chosen: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    has_gpu(monkeypatch, True)
    assert device.use(index) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen


@pytest.mark.parametrize("visible", ["", "3", "3,4"])
def test_an_index_beyond_the_visible_ones_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError, match="There is no GPU 2"):
        device.use("2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("given", ["x", "-1", "0,1", "cuda:0", "1.5", "CPU"])
def test_what_is_no_index_is_refused(given: str) -> None:
    with pytest.raises(DeviceError, match="Expected: an index such as 0, or cpu"):
        device.use(given)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu(monkeypatch, False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    said = r"There is no GPU 7 here\..*CUDA_VISIBLE_DEVICES=not set.*Use --gpu cpu"
    with pytest.raises(DeviceError, match=said):
        device.use("7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")  # what the user has set, not what the program makes of it
    with pytest.raises(DeviceError, match=r"CUDA_VISIBLE_DEVICES='3,4'"):
        device.use("1")


def test_a_torch_without_cuda_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu(monkeypatch, False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceError, match=r"no GPU 7 .* without CUDA support.*Use --gpu cpu") as caught:
        device.use("7")
    assert "CUDA_VISIBLE_DEVICES" not in str(caught.value)


def test_the_default_is_the_first_gpu_and_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu(monkeypatch, True)
    assert device.use(None) == "cuda:0"
    has_gpu(monkeypatch, False)
    assert device.use(None) == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_cpu_is_the_cpu_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu(monkeypatch, True)
    assert device.use("cpu") == "cpu"


def test_threads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    device.use("cpu", 3)
    device.use("cpu")
    assert asked == [3]


def test_the_module_itself_does_not_load_torch() -> None:
    code = "import sys, cvaeopt.vae.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_processes_of_a_machine_divide_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 8)
    mine = device.CpuShare(tmp_path)
    monkeypatch.setattr(device, "_share", mine)
    assert device.threads() == 8
    code = "import sys; from pathlib import Path; from cvaeopt.vae.device import CpuShare; "
    code += "share = CpuShare(Path(sys.argv[1])); print(share.processes(), flush=True); sys.stdin.read()"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert int(other.stdout.readline()) in (2, 3)
        assert device.threads() == 8 // 3
        others[0].kill()
        others[0].wait()
        assert device.threads() == 8 // 2
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert device.threads() == 8
    assert len(list(tmp_path.iterdir())) == 1, "what the dead have left is swept away"
    mine.leave()
    assert not list(tmp_path.iterdir())


def test_more_processes_than_cores_have_one_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 2)
    shares = [device.CpuShare(tmp_path) for _ in range(5)]
    monkeypatch.setattr(device, "_share", shares[0])
    assert shares[0].processes() == 5
    assert device.threads() == 1
    for share in shares:
        share.leave()


@pytest.mark.parametrize(("threads", "environment"), [(3, None), (None, "2")])
def test_a_number_of_threads_that_was_asked_for_is_not_divided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int | None, environment: str | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    device.use("cpu", threads)
    assert device.threads() == 7
    assert not list(tmp_path.iterdir())


def test_a_worker_on_the_processor_takes_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(device, "cores", lambda: 6)
    try:
        device.use("cpu")
        assert device.threads() == 6
        (folder,) = tmp_path.iterdir()
        neighbour = device.CpuShare(folder)
        assert device.threads() == 3
        neighbour.leave()
    finally:
        device._join(1)
    assert not list(folder.iterdir())


def test_openmp_threads_sleep_while_they_wait() -> None:
    # It must be said before torch is loaded, which is when OpenMP reads it.
    code = (
        "import os, sys; from cvaeopt.vae import device; seen = []; "
        "import builtins; real = builtins.__import__\n"
        "def watch(name, *rest, **more):\n"
        "    if name == 'torch' and not seen: seen.append(os.environ.get('OMP_WAIT_POLICY'))\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watch; device.use('cpu', 1); print(seen)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['passive']"
