"""Has the sockets of the data queue ask for the run's key: TransferQueue unpickles what reaches it, from whoever sends it.

A function of TransferQueue is replaced at run time, for want of another way: it makes each of its sockets with
`create_zmq_socket` (transfer_queue/utils/zmq_utils.py:326), from contexts of its own making (controller.py:1730,
storage/simple_storage.py:825, storage/managers/base.py:113, client.py:129), in actors whose classes it names itself
(interface.py:200, storage/bootstrap/simple_storage_bootstrap.py:76); no setting reaches a socket. Ray calls `install` in every
process of the run before anything else (worker_process_setup_hook, run/queue_key.py).

The key is ZeroMQ's CURVE, one pair for all sockets of a run. A client proves with its first message that it knows the server's
public half, which follows from what is in the key's file and is never on the wire; what is sent is encrypted. A server lets
nobody else in.
"""

import os
from collections.abc import Callable
from pathlib import Path

import zmq

from srpo_recipe.run.queue_key import VARIABLE

NAME = "create_zmq_socket"


def keyed(create: Callable[..., zmq.Socket], secret: bytes) -> Callable[..., zmq.Socket]:
    """The function `create` of TransferQueue, whose sockets have the key. secret: the private half, 40 characters of Z85."""
    public = zmq.curve_public(secret)

    def create_zmq_socket(ctx: zmq.Context, socket_type: int, ip: str, identity: bytes | None = None) -> zmq.Socket:
        made = create(ctx, socket_type, ip, identity)
        made.curve_secretkey, made.curve_publickey = secret, public
        if socket_type == zmq.ROUTER:  # those that bind
            made.curve_server = True
        else:
            made.curve_serverkey = public
        return made

    return create_zmq_socket


def install() -> None:
    """Replace the function in this process, with the key that VARIABLE names the file of.

    Raises RuntimeError where the file cannot be read: a node that does not see the run's folder.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        secret = Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(
            f"the key of this run's data queue, {path}, cannot be read ({error.strerror}): run.root must be a folder that every "
            "node of the run sees, as this user"
        ) from error
    from transfer_queue import controller
    from transfer_queue.storage import simple_storage
    from transfer_queue.storage.managers import base
    from transfer_queue.utils import zmq_utils

    replacement = keyed(zmq_utils.create_zmq_socket, secret)
    for holder in (zmq_utils, controller, simple_storage, base):  # all that have it by name
        setattr(holder, NAME, replacement)
