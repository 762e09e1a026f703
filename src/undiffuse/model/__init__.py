"""`Model`: a network with everything that is needed to use it. It needs no run folder.

model.py    the model: built, described, saved, loaded and used
request.py  a request for images
edits.py    requests that start from a user's images
"""

from __future__ import annotations

from undiffuse.model.model import Description, Model
from undiffuse.model.request import Request

__all__ = ["Description", "Model", "Request"]
