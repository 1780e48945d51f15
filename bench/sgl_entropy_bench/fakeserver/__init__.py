"""A fake SGLang, against which the load tester itself is tested and measured.

No model runs in it, and its results can never pass for those of SGLang: ``/get_server_info`` says
``"fake": true``. It speaks SGLang 0.5.6's routes over real HTTP, serves requests in simulated time
and breaks in planned ways. ``python -m sgl_entropy_bench.fakeserver --help`` lists the flags.
"""

from sgl_entropy_bench.fakeserver.process import FakeServer

__all__ = ["FakeServer"]
