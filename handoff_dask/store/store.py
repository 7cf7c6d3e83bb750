import os, pickle
from handoff_dask.store.entries import *
from handoff_dask.errors import StoreError, StoredResultMissing
class Store:
    def __init__(self, url, versions="exact", required=False, storage_options=None, hmac_key=None):
        self.url, self.versions = os.path.abspath(str(url)), versions
    def path(self, l): return os.path.join(self.url, l.key)
    def look(self, names):
        r = {}
        for n in names:
            l = Location.of(n)
            if os.path.exists(self.path(l)):
                r[n.key] = StoredResult(l, pickle.load(open(self.path(l), "rb"))[0])
        return r
    def read(self, l):
        try: return pickle.load(open(self.path(l), "rb"))[1]
        except FileNotFoundError: raise StoredResultMissing(l.key, "gone") from None
    def write(self, l, value, made):
        os.makedirs(self.url, exist_ok=True)
        with open(self.path(l) + ".tmp", "wb") as f: pickle.dump((made, value), f)
        os.replace(self.path(l) + ".tmp", self.path(l))
