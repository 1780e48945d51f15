"""A fake SGLang: what the client's own tests and capacity figures run against.

No model runs in it, and it never stands in for SGLang in a result: ``/get_server_info`` says
``"fake": true``. It speaks SGLang 0.5.6's routes over real HTTP, serves requests in simulated time
and breaks in planned ways. ``python -m sgl_entropy_bench.fakeserver --help`` tells the flags.
"""

from sgl_entropy_bench.fakeserver.process import FakeServer

__all__ = ["FakeServer"]
