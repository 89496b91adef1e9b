"""The HTTP door: OpenAI's routes over one engine in a process of its own.

Decides: what a request over HTTP means, who must wait or is refused, what is told to whom when something dies.
Speaks: HTTP and JSON outwards, `Request` and `SampleUpdate` as msgpack over a unix socket inwards.
Owns: the sockets, the engine process, the text of streams.
Never: touches a tensor, schedules, or lets a request's exception reach another request.
Door: `quire serve` (`cli/serve.py`).
"""
