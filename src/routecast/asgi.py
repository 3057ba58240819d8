"""The application for any ASGI server: `python -m uvicorn routecast.asgi:app`.

Settings come from the environment (`ROUTECAST_*`).
"""

from routecast.server.app import create_app
from routecast.server.config import load_settings
from routecast.server.json_log import start_log

settings = load_settings()
if settings.log_format == "json":  # else the server that runs the application decides
    start_log(settings.log_level, settings.log_format)
app = create_app(settings)
