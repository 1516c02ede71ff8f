"""A run looked at while it grows: when to ask the rules again, and the live page.

`judging` is for the terminal and the page; the rest serves the page and needs the extra `serve` (starlette, uvicorn),
which only `app` imports.
"""
