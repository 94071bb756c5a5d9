"""A Ray cluster of several machines on this one."""

import shutil
import tempfile
from pathlib import Path

from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


class Machines:
    """The first has no cores, so that work is done on those that are added. Each has a folder of its own, as they would
    on several computers: in a common one they overwrite each other's copy of the code."""

    def __enter__(self) -> "Machines":
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets need a short path
        self.cluster = Cluster()
        try:
            self.add(cores=0)
        except BaseException:
            self.__exit__()
            raise
        self.address = self.cluster.address
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cores: int = 1) -> object:
        folder = tempfile.mkdtemp(prefix="", dir=self.folder)
        return self.cluster.add_node(num_cpus=cores, temp_dir=folder, **SMALL)

    def kill(self, machine: object) -> None:
        self.cluster.remove_node(machine, allow_graceful=False)
