"""scalecap: long, dense, true captions by generate, verify, expand, fuse.

`Captioner` captions images and datasets, `open_run` reads the folder of a run, `compare` tabulates several
runs, and `stage` registers a custom stage. The command line is `scalecap`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalecap.captioner import Captioner, CaptionError
    from scalecap.config.settings import SettingsError
    from scalecap.report.comparison import compare
    from scalecap.run.folder import FolderError, open_run
    from scalecap.runner import RunError
    from scalecap.stages import stage

__version__ = "0.2.0"
__all__ = [
    "CaptionError",
    "Captioner",
    "FolderError",
    "RunError",
    "SettingsError",
    "__version__",
    "compare",
    "open_run",
    "stage",
]

_MODULES = {
    "Captioner": "captioner",
    "CaptionError": "captioner",
    "FolderError": "run.folder",
    "RunError": "runner",
    "SettingsError": "config.settings",
    "compare": "report.comparison",
    "open_run": "run.folder",
    "stage": "stages",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, which keeps `import scalecap` and the command line fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'scalecap' has no attribute {name!r}")
    return getattr(import_module(f"scalecap.{_MODULES[name]}"), name)
