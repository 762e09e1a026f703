"""`Model`: a network with everything that is needed to use it. It needs no run folder.

model.py        the model: built, described, saved, loaded and used
description.py  a model without its weights
request.py      a request for images
edits.py        requests that start from a user's images
wrap.py         networks of others as models
"""

from __future__ import annotations

from undiffuse.model.description import Description
from undiffuse.model.model import Model
from undiffuse.model.request import Request

__all__ = ["Description", "Model", "Request"]
