"""The process in which llama.cpp serves one model, started by `llamacpp` as a script: nothing of the package is loaded.

Settings come in as one line of JSON on stdin, the server's address goes out on what was stdout; llama.cpp's own log is
left to stderr. When stdin closes, because it is no longer wanted or because its parent is gone, it ends at once.
"""

import json
import os
import sys
from threading import Thread

LOOPBACK = "127.0.0.1"


def main() -> None:
    """Serve until stdin closes."""
    talk = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.buffer.readline())
    waiting = Thread(target=_end_with_parent)
    waiting.start()
    try:
        server = serve(**settings)
        talk.write(json.dumps({"url": server.listening_address}) + "\n")
    except Exception as error:  # all that llama.cpp's bindings raise: the parent makes one line of it
        talk.write(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())}) + "\n")
        talk.flush()
        os._exit(1)
    talk.flush()
    waiting.join()


def serve(
    model: str,
    adapters: list[str],
    alias: str,
    context: int,
    threads: int | None,
    exact: bool,
    port: int,
    slots: int,
    cache: bool,
):
    """Start the server on a port of the loopback, 0 for a free one, and return it when the model is loaded.

    The first adapter is applied, the others are held at scale 0. Each of `slots` requests at once has a context of its
    own. Without `cache` no request begins with what another one computed.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {alias}
    params.hostnames, params.port = [LOOPBACK], port
    params.cors_origins, params.ui = f"http://{LOOPBACK}", False
    params.n_ctx, params.n_parallel = context * slots, slots
    params.warmup = False
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, float(number == 0)) for number, path in enumerate(adapters)
    ]
    if not cache:
        params.cache_prompt, params.cache_ram_mib = False, 0
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
