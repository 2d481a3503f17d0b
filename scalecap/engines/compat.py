"""Compatibility patches for vLLM and transformers, to be applied before either is imported.

* Package registries have torchvision as a CUDA build only. With a CPU build of torch its C++ library can't be
  loaded, and `import torchvision` fails with `operator torchvision::nms does not exist`, even for
  transformers and vLLM, which use only its Python part. That part works once the operators are declared; only
  their names matter, since they have no kernel.
* torchaudio and torchcodec are CUDA builds too and don't work at all: they are hidden.
* vLLM 0.32 rewinds the random generator of a seeded request whose prompt is prefilled in chunks, by setting
  the generator's offset. A CPU generator has none, and the engine dies.
* vLLM's processes outlive a parent that was killed and keep its GPU memory: they are made to die with it.

This file is also copied into a folder on the path of child processes, so it must not import scalecap.
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

_POOLING_OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_OPERATORS = ("nms", "qnms", *_POOLING_OPERATORS, *(f"_{name}_backward" for name in _POOLING_OPERATORS))
"""Operators that torchvision registers gradients or shapes for when it is imported."""
_PR_SET_PDEATHSIG = 1
_libraries: list[object] = []
"""An operator exists as long as the `Library` that declared it."""


def patch_libraries() -> None:
    """Makes `import torchvision` work if its C++ library can't be loaded; changes nothing otherwise.

    Must be called before torchvision is first imported. Cheap; may be called repeatedly.
    """
    found = importlib.util.find_spec("torchvision")
    if _libraries or found is None or found.origin is None or "torchvision" in sys.modules:
        return
    import torch.library

    library = Path(found.origin).with_name("_C.so")
    if not library.exists():
        return
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in _OPERATORS:
            operators.define(f"{name}(Tensor input) -> Tensor")  # type: ignore[no-untyped-call]
        _libraries.append(operators)
        for package in ("torchaudio", "torchcodec"):
            _hide_if_broken(package)


def init_child() -> None:
    """Prepares a child process; torch calls this at the end of its import."""
    if sys.platform == "linux":
        # SIGKILL, since Linux sends the signal once per thread of a dying parent: vLLM's handler of SIGTERM
        # takes a lock, and a second signal inside the handler would wait for it forever.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C in a terminal goes to the whole process group, but rows in flight still need the engine.
    os.setpgid(0, 0)
    patch_libraries()
    import torch

    if torch.version.cuda is not None:
        return

    class Rewinding(torch.Generator):
        """Rewinds to its seed. A prompt's chunks are prefilled before the first token is sampled, so this is
        where the offset would lead; a preempted request may repeat random numbers.
        """

        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> torch.Generator:
            return self.manual_seed(self.initial_seed())

    torch.Generator = Rewinding  # type: ignore[misc]


def _hide_if_broken(package: str) -> None:
    """Makes a package that can't be imported look absent, so that libraries do without it."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        pass
    except (OSError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        # None tells Python's import system that the module does not exist.
        sys.modules[package] = None  # type: ignore[assignment]
        if package == "torchcodec" and "datasets" in sys.modules:  # which has already looked
            sys.modules["datasets"].config.TORCHCODEC_AVAILABLE = False


@contextmanager
def patched_children() -> Iterator[None]:
    """Processes started inside the block (but not by fork) run `init_child`: engine, workers, model
    inspection.

    torch calls the entry points of the group `torch.backends` at the end of its own import, before
    torchvision and vLLM are imported. An entry point is put on the path of the children, so that this works
    from a checkout too, and no other process is affected.
    """
    previous = os.environ.get("PYTHONPATH")
    with TemporaryDirectory(prefix="scalecap-") as folder:
        shutil.copy(__file__, Path(folder, "scalecap_child.py"))
        dist_info = Path(folder, "scalecap_child-1.dist-info")
        dist_info.mkdir()
        (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: scalecap-child\nVersion: 1\n")
        entry_point = "[torch.backends]\nscalecap = scalecap_child:init_child\n"
        (dist_info / "entry_points.txt").write_text(entry_point)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([previous] if previous else [])])
        # Processes that multiprocessing spawns inherit sys.path instead of the environment.
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            if previous is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = previous
