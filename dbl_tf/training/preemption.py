"""Google Compute Engine's notice that it is about to end the machine, taken for a SIGTERM.

Other systems announce the end of a process by SIGTERM itself. Compute Engine says an hour before,
to those that ask its metadata server, that maintenance will end a machine that cannot be moved, as
one with GPUs. TensorFlow's `PreemptionCheckpointHandler` asks it likewise.

Source: "Monitor and plan for a host maintenance event", documentation of Compute Engine.
"""

import contextlib
import http.client
import os
import pathlib
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator

# Google's libraries read it too.
ADDRESS_VARIABLE = "GCE_METADATA_IP"
_ADDRESS = "metadata.google.internal"
_ENDS = "TERMINATE_ON_HOST_MAINTENANCE"
_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")
_SECONDS_BETWEEN_QUESTIONS = 5.0
_SECONDS_FOR_ANSWER = 5.0


@contextlib.contextmanager
def noticing_preemption() -> Iterator[None]:
    """Inside, the process gets a SIGTERM once its machine is announced to end.

    A metadata server is asked on Compute Engine, and where `GCE_METADATA_IP` names one; elsewhere,
    nothing is done.
    """
    if not _is_compute_engine():
        yield
        return
    ended = threading.Event()
    asking = threading.Thread(target=_ask, args=(ended,), daemon=True)
    asking.start()
    try:
        yield
    finally:
        ended.set()


def _is_compute_engine() -> bool:
    if ADDRESS_VARIABLE in os.environ:
        return True
    try:
        return _PRODUCT.read_text().strip() == "Google Compute Engine"
    except OSError:  # there is no such file in some containers, and on other systems
        return False


def _ask(ended: threading.Event) -> None:
    """Asks until the answer is the end of the machine, or the training has ended."""
    has_failed = False
    while not ended.is_set():
        try:
            event = _maintenance_event()
        except (OSError, http.client.HTTPException) as error:
            event = ""
            if not has_failed:
                has_failed = True
                _say(f"the metadata server does not say whether this machine will end ({error})")
        if event == _ENDS and not ended.is_set():
            _say("Compute Engine is about to end this machine")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        ended.wait(_SECONDS_BETWEEN_QUESTIONS)


def _maintenance_event() -> str:
    address = os.environ.get(ADDRESS_VARIABLE, _ADDRESS)
    url = f"http://{address}/computeMetadata/v1/instance/maintenance-event"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # Without the proxies of the environment, which do not reach this server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_SECONDS_FOR_ANSWER) as answer:
        return answer.read(1000).decode("ascii", "replace").strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
