"""What this process and vLLM's children need before they import vLLM or transformers.

* Package registries hold torchvision as a CUDA build only. Beside a CPU build of torch its library
  can't be loaded, and `import torchvision` ends in `operator torchvision::nms does not exist`, even
  for those who, like transformers and vLLM, use its Python half alone. Declaring the operators,
  which then have a schema and no kernel, is enough for that half.
* torchaudio and torchcodec come as CUDA builds too and have no half to save: they are hidden.
* vLLM 0.32 takes back what a seeded request has drawn when only a part of its prompt was read, by a
  generator's offset. The CPU's generator has none, and the engine dies.
* vLLM's engine outlives a process that was killed, and keeps its memory: children end with us.

This file is also copied alone into a folder on the children's path: it must import no scalecap.
"""

import ctypes
import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_DECLARED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height,"
    " int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width,"
    " int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale,"
    " SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height,"
    " SymInt width) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale,"
    " SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt batch_size,"
    " SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale,"
    " SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height,"
    " SymInt width) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias,"
    " SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h,"
    " SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask,"
    " Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h,"
    " SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_PR_SET_PDEATHSIG = 1
_kept: list[object] = []
"""An operator lives as long as the `Library` that declared it."""


def patch_libraries() -> None:
    """Make `import torchvision` work if its own library does not; else nothing is changed.

    Must come before torchvision's first import. Cheap, and may be called again.
    """
    found = importlib.util.find_spec("torchvision")
    if _kept or found is None or found.origin is None or "torchvision" in sys.modules:
        return
    import torch.library

    library = Path(found.origin).with_name("_C.so")
    if not library.exists():
        return
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _DECLARED:
            declared.define(schema)  # type: ignore[no-untyped-call]
        _kept.append(declared)
        for package in ("torchaudio", "torchcodec"):
            _hide_if_broken(package)


def init_child() -> None:
    """Prepare a child; torch calls this at the end of its import."""
    if sys.platform == "linux":
        # Linux sends it once for each thread of a dying parent, and vLLM's handler of SIGTERM takes a lock
        # that a second one, in the middle of it, waits for without end.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A terminal's Ctrl-C goes to its whole process group; rows in flight still need the engine.
    os.setpgid(0, 0)
    patch_libraries()
    import torch

    if torch.version.cuda is not None:
        return

    class Rewinding(torch.Generator):
        """Goes back to its seed. Parts of a prompt are read before the first token is drawn, so
        that is where the offset would lead; a preempted request may repeat its draws.
        """

        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> torch.Generator:
            return self.manual_seed(self.initial_seed())

    torch.Generator = Rewinding  # type: ignore[misc]


def _hide_if_broken(package: str) -> None:
    """Make a package that can't be imported look absent, so that libraries do without it."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        pass
    except (OSError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        # For Python's import system, None says that there is no such module.
        sys.modules[package] = None  # type: ignore[assignment]
        if package == "torchcodec" and "datasets" in sys.modules:  # which remembers what it found
            sys.modules["datasets"].config.TORCHCODEC_AVAILABLE = False


@contextmanager
def patched_children() -> Iterator[None]:
    """Processes started inside, by whatever means but a fork, `init_child` so: engine, workers, inspection.

    torch calls the entry points of the group `torch.backends` at the end of its own import, which
    comes before torchvision's and vLLM's. One is laid on the children's path, so that it works from
    a checkout as well, and no other process that uses the same packages is changed.
    """
    before = os.environ.get("PYTHONPATH")
    with TemporaryDirectory(prefix="scalecap-") as folder:
        shutil.copy(__file__, Path(folder, "scalecap_child.py"))
        described = Path(folder, "scalecap_child-1.dist-info")
        described.mkdir()
        name, entry = (
            "Metadata-Version: 2.1\nName: scalecap-child\nVersion: 1\n",
            "scalecap_child:init_child",
        )
        (described / "METADATA").write_text(name)
        (described / "entry_points.txt").write_text(f"[torch.backends]\nscalecap = {entry}\n")
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([before] if before else [])])
        # Processes that multiprocessing spawns take this path in place of the environment's.
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
