"""Settings of the test suite: the project's own, with a database and servers of their own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before the project's settings read the environment: nothing of a developer's host may get into a test, or back.
_data_dir = tempfile.mkdtemp(prefix="gumcp-tests-")
atexit.register(shutil.rmtree, _data_dir, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith("GUMCP_") or name == "DATABASE_URL"]:
    del os.environ[_name]
os.environ["GUMCP_ENV_FILE"] = ""
os.environ["GUMCP_DATA_DIR"] = _data_dir
os.environ["GUMCP_METRICS_PORT"] = "0"

from gumcp_site.settings import *  # noqa: E402, F403
from gumcp_site.settings import DATABASES  # noqa: E402

GUMCP_SERVER_DIRS = [Path(__file__).parent / "servers" / "plain"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# In memory. pytest-django knows only Django's own backend to be in memory unless it is told otherwise.
DATABASES["default"]["TEST"] = {"NAME": ":memory:"}
# WhiteNoise would read all files anew for each client of Django's.
WHITENOISE_AUTOREFRESH = True
