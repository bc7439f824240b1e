"""An app for uvicorn that answers its name to everything.

    python -m uvicorn --app-dir integration/peers/apps --port PORT asgi:app
"""


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"uvicorn"})
