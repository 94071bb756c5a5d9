"""A Ray cluster of several machines on this one."""

import contextlib
import shutil
import socket
import tempfile
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster

from many import comfyuis

SMALL = {
    "object_store_memory": 80 * 2**20, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True,
}  # fmt: skip
PORTS = "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"


def wait_for_all_servers(monkeypatch) -> None:
    """However busy this machine is; what a user waits may be too short then."""
    monkeypatch.setattr(comfyuis, "ANSWER_WITHIN", 300)
    monkeypatch.setattr(comfyuis, "FIRST_ANSWERS_WITHIN", 300)


class Machines:
    """The first has no cores, so that work is done on those that are added. Each has a folder of its own, as they would
    on several computers: in a common one they overwrite each other's copy of the code."""

    def __enter__(self) -> "Machines":
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets need a short path
        # a cluster's address is noted there, in whichever folder its machines are
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
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
        """With ports chosen here: where Ray shall choose them, a machine dies whose helpers take 15 seconds for it."""
        folder = tempfile.mkdtemp(prefix="", dir=self.folder)
        with contextlib.ExitStack() as stack:
            free = [stack.enter_context(socket.create_server(("", 0))) for _ in PORTS]
            ports = {name: one.getsockname()[1] for name, one in zip(PORTS, free, strict=True)}
        return self.cluster.add_node(num_cpus=cores, temp_dir=folder, **ports, **SMALL)

    def kill(self, machine: object) -> None:
        self.cluster.remove_node(machine, allow_graceful=False)
