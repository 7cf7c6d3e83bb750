import hashlib, cloudpickle
from typing import NamedTuple
class Unnameable(Exception): pass
class ResultName(NamedTuple):
    key: str
    label: str
    code: dict = {}
    arguments: dict = {}
    upstream: dict = {}
class Namer:
    def __init__(self, versions="exact"): pass
    def names(self, nodes):
        out = {}
        def name(i):
            if i not in out:
                n = nodes[i]
                deps = [name(d).key for d in n.dependencies]
                call = n.call
                out[i] = ResultName(hashlib.sha256(cloudpickle.dumps((tuple(call), deps))).hexdigest()[:40], getattr(call.code, "__qualname__", "x"), {}, {}, {})
            return out[i]
        return [name(i) for i in range(len(nodes))]
