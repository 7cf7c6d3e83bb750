from typing import NamedTuple, Any
class Location(NamedTuple):
    key: str
    label: str
    manifest: bytes | None = None
    @classmethod
    def of(cls, name): return cls(name.key, name.label)
class Made(NamedTuple):
    dag: str; function: str; worker: str; host: str; user: str; started: float; stopped: float; usage: tuple
class StoredResult(NamedTuple):
    location: Location
    made: Made
    size: int = 0
    value: Any = None
    def without_value(self): return self
    def open(self, store): return store.read(self.location)
