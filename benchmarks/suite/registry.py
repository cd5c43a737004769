"""All studies, by name: each is a module in a folder, with a ``STUDY``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

from benchmarks.suite.study import Study

FOLDER = Path(__file__).parent.parent / "studies"


class UnknownStudy(ValueError):
    """A name or a pattern that no study has, or a folder without studies."""


@dataclass(frozen=True)
class Registry:
    """The studies of a folder: modules whose names begin with no underscore."""

    folder: Path = FOLDER

    def names(self) -> list[str]:
        """Of all studies, sorted. Imports none of them."""
        return sorted(p.stem for p in self.folder.glob("*.py") if not p.stem.startswith("_"))

    def chosen(self, patterns: Sequence[str]) -> list[str]:
        """The studies that names or patterns such as ``ghorbani_*`` mean; ``all`` means each.

        Raises:
            UnknownStudy: one of them means none.
        """
        known = self.names()
        patterns = ["*" if pattern == "all" else pattern for pattern in patterns]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UnknownStudy(
                    f"no study in {self.folder} is called {pattern!r}; expected one of: "
                    f"{', '.join(known) or 'none, there are no studies'}"
                )
        return [name for name in known if any(fnmatchcase(name, p) for p in patterns)]

    def load(self, name: str) -> Study:
        """The study of that name."""
        return self._module(name).STUDY

    def about(self, name: str) -> str:
        """What its file says of it."""
        return inspect.getdoc(self._module(name)) or ""

    def source(self, name: str) -> str:
        """Its file's text."""
        return (self.folder / f"{name}.py").read_text()

    def _module(self, name: str) -> ModuleType:
        if self.folder == FOLDER:
            return importlib.import_module(f"benchmarks.studies.{name}")
        path = (self.folder / f"{name}.py").resolve()
        key = f"study {path}"
        if key not in sys.modules:
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[key] = module  # dataclasses look for their module there
            spec.loader.exec_module(module)
        return sys.modules[key]
