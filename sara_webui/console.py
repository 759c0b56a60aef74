"""What the face says in the WebUI's console: SD.Next shows what named loggers say, and nothing of the root logger's."""

import logging

log = logging.getLogger("sara")
log.setLevel(min(logging.WARNING, logging.root.level))  # some of these hosts show nothing but errors otherwise
