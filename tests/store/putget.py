"""A file system that can put and get whole objects, and nothing else, as object stores can."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class PutGet(AbstractFileSystem):
    """Keeps objects in this process. There are no folders, and nothing can be renamed."""

    protocol = "putget"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    #: What every operation raises, if anything.
    problem: ClassVar[Exception | None] = None

    @classmethod
    def clear(cls) -> None:
        cls.objects.clear()
        cls.problem = None

    def _check(self) -> None:
        if self.problem is not None:
            raise self.problem

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self._check()
        inside = path.rstrip("/") + "/"
        sizes: dict[str, Any] = {}
        for name, content in self.objects.items():
            if name.startswith(inside):
                head, *rest = name.removeprefix(inside).split("/")
                kind = "directory" if rest else "file"
                sizes[inside + head] = {
                    "name": inside + head,
                    "type": kind,
                    "size": 0 if rest else len(content),
                }
            elif name == path:
                sizes[name] = {"name": name, "type": "file", "size": len(content)}
        if not sizes:
            raise FileNotFoundError(path)
        return list(sizes.values()) if detail else list(sizes)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        self._check()
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._check()
        self.objects[self._strip_protocol(path)] = bytes(value)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        assert mode == "rb", "objects are put at once"
        return io.BytesIO(self.cat_file(path))

    def rm_file(self, path: str) -> None:
        self._check()
        if self.objects.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)


fsspec.register_implementation("putget", PutGet, clobber=True)
