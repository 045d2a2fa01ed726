"""A template of programs that behave as an instance does towards its driver, and in some ways as it should not."""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading

from flatshare.instance.template import Template


def main() -> None:
    arguments = Template(socket.socket(fileno=os.dup(0))).serve()
    if arguments is not None:
        live((sys.argv[1], *arguments))


def live(arguments: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=["good", "crashing", "mute", "deaf"])
    for option in ("--socket", "--store", "--memory", "--disk", "--workers", "--changed-artifacts", "--id", "--name"):
        parser.add_argument(option, required=True)
    parser.add_argument("--follow-stdin", action="store_true")
    options = parser.parse_args(arguments)
    print(
        "I am",
        options.name,
        "with",
        options.memory,
        "bytes;",
        os.environ["MALLOC_ARENA_MAX"],
        "arenas; changed artifacts:",
        options.changed_artifacts,
        flush=True,
    )
    if options.behaviour == "crashing":
        sys.exit("out of paint")
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    if options.behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, ended.set)

    def wait_for_end_of_input() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    if options.behaviour != "mute":
        await asyncio.start_unix_server(answer, options.socket)
    await ended.wait()
    print("drained", flush=True)
    os._exit(0)  # the thread still reads


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await reader.readexactly(length)
        status = 200
        if head.startswith(b"PUT /flatshare/memory "):
            memory_bytes = json.loads(body)["memory_bytes"]
            status = 200 if memory_bytes > 0 else 400
            print("memory", memory_bytes, flush=True)
        elif not head.startswith(b"GET /ping "):
            status = 404
        writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())


main()
