"""A worker of the observatory that crashes or hangs, in a module that its process can import."""

import os
import time

import observatory


def work(connection):
    while (name := connection.recv()) is not None:
        if name == "crashes":
            os._exit(1)
        if name == "hangs":
            time.sleep(60)
        connection.send({"name": name, "versions": observatory.VERSIONS, "reason": "fine"})
