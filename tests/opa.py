"""A policy engine that speaks Open Policy Agent's data API, as a process of its own.

    python opa.py [--socket PATH | --tls CERT KEY] [--data FILE.json] FILE.rego...

prints its URL once it answers. Rego is evaluated by rego-cpp; the parts of the API that matter here
are those of openpolicyagent.org/docs: POST /v1/data/PATH with {"input": …} gives {"result": …}, or
{} where the document is not defined. Below /odd/ it misbehaves in the way the path names, and below
/kept/SECONDS/ the answer may be kept that long. GET /count says how many questions came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from aiohttp import web
from regopy import Interpreter


class Engine:
    """Rego modules, and who asked."""

    def __init__(self, modules: Sequence[Path], data: Optional[Path]) -> None:
        self.documents = json.loads(data.read_text()) if data else {}
        self.modules = [(path.stem, path.read_text()) for path in modules]
        self.asked: List[Any] = []

    def evaluate(self, path: str, value: Any) -> Dict[str, Any]:
        interpreter = Interpreter()
        for name, text in self.modules:
            interpreter.add_module(name, text)
        interpreter.add_data(self.documents)
        interpreter.set_input(value)
        # Bound to a name: as an expression, rego-cpp has one word for false and for undefined.
        output = str(interpreter.query(f"found = data.{path.replace('/', '.')}"))
        if output == "undefined":
            return {}
        return {"result": json.loads(output)["bindings"]["found"]}

    async def data(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            return web.json_response({"code": "invalid_parameter"}, status=400)
        self.asked.append(body)
        found = self.evaluate(request.match_info["path"], body.get("input"))
        seconds = request.match_info.get("seconds")
        headers = {"Cache-Control": f"max-age={seconds}"} if seconds else {}
        return web.json_response(found, headers=headers)

    async def count(self, request: web.Request) -> web.Response:
        return web.json_response({"count": len(self.asked)})

    async def odd(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(None)
        how = request.match_info["how"]
        if how == "slow":
            await asyncio.Event().wait()
        if how == "drip":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"result": ')
            await asyncio.Event().wait()
        if how == "redirect":
            raise web.HTTPTemporaryRedirect("/v1/data/recuse/everybody")
        if how == "error":
            return web.json_response({"result": True}, status=500)
        if how == "huge":
            return web.Response(text='{"result": true, "padding": "%s"}' % ("x" * 1000000))
        if how == "zipped":
            import gzip

            body = gzip.compress(b'{"result": true}')
            return web.Response(body=body, headers={"Content-Encoding": "gzip"})
        if how == "cut":
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b'{"result": true')
            assert request.transport is not None
            request.transport.abort()
            return response
        bodies = {
            "garbage": "<html>true</html>", "list": "[true]", "string": '{"result": "true"}',
            "twice": '{"result": false, "result": true}', "empty": "", "null": '{"result": null}',
            "nan": '{"result": {"match": true, "cache_seconds": NaN}}',
            "cookie": '{"result": true}',
        }  # fmt: skip
        return web.Response(text=bodies[how])


async def serve(
    modules: Sequence[Path],
    path: Optional[str],
    data: Optional[Path],
    tls: Optional[Sequence[str]],
) -> None:
    engine = Engine(modules, data)
    app = web.Application(client_max_size=1 << 20)
    app.add_routes(
        [
            web.post("/v1/data/{path:.+}", engine.data),
            web.post("/kept/{seconds}/v1/data/{path:.+}", engine.data),
            web.post("/odd/{how}", engine.odd),
            web.get("/count", engine.count),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    if path is not None:
        await web.UnixSite(runner, path).start()
        print("http://localhost", flush=True)
    else:
        context = None
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "http" if context is None else "https"
        print("%s://%s:%d" % (scheme, *runner.addresses[0][:2]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("modules", nargs="+", type=Path)
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.modules, options.socket, options.data, options.tls))
    except KeyboardInterrupt:
        sys.exit(0)
