"""Sinks of other packages, whose errors name them: a run's rows are safe in its journal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scalecap import plugins
from scalecap.config.exports import WriteSettings
from scalecap.data import DataError
from scalecap.data.groups import Export, Sink
from scalecap.data.replacing import replacing

Open = Callable[[Path, WriteSettings], AbstractContextManager[Sink]]


def load_sinks(settings: WriteSettings) -> dict[str, Open]:
    """By format of another package, what opens it. DataError when one can't be imported."""
    try:
        return {name: plugins.load("sinks", name) for name in settings.plugins}
    except plugins.PluginError as error:
        raise DataError(f"write.format: {error}") from error


@contextmanager
def plugin_sinks(folder: Path, settings: WriteSettings) -> Iterator[list[Sink]]:
    """All of them, each in a folder of its own below the run's.

    Raises:
        DataError: one went wrong.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name, open_sink in load_sinks(settings).items():
            part = stack.enter_context(replacing(folder / settings.plugins[name]))
            sinks.append(stack.enter_context(_Named(name, open_sink, part, settings)))
        yield sinks


class _Named:
    """A sink whose errors begin with its name."""

    def __init__(self, name: str, open_sink: Open, folder: Path, settings: WriteSettings) -> None:
        self._name = name
        self._context = self._do(open_sink, folder, settings)

    def __enter__(self) -> Sink:
        self._sink: Sink = self._do(self._context.__enter__)
        return self

    def __exit__(self, *error: Any) -> None:
        self._do(self._context.__exit__, *error)

    def add(self, group: Sequence[Export]) -> None:
        self._do(self._sink.add, group)

    def _do(self, call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except (OSError, DataError):
            raise
        except Exception as error:
            raise DataError(
                f"write.format={self._name}: {type(error).__name__}: {error}. All finished rows are kept in"
                " the journal: leave it out of write.format, and the same command writes the other files"
            ) from error
