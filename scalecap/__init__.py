"""scalecap: long, dense, true captions by generate, verify, expand, fuse.

From Python, `Captioner` captions pictures and data sets, `open_run` reads the folder of a run, `compare`
tabulates several, and `stage` registers a stage of one's own. The command line is `scalecap`.
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

__version__ = "0.1.0"
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

_WHERE = {
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
    """Public names are imported when they are first used: the command line needs few of them."""
    if name not in _WHERE:
        raise AttributeError(f"module 'scalecap' has no attribute {name!r}")
    return getattr(import_module(f"scalecap.{_WHERE[name]}"), name)
