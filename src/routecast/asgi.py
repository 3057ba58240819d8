"""The application for any ASGI server: `python -m uvicorn routecast.asgi:app`.

Settings come from the environment (`ROUTECAST_*`).
"""

from routecast.server.app import create_app
from routecast.server.config import load_settings

app = create_app(load_settings())
