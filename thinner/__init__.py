"""Make a pretrained vision model small, with proof; and use what came out.

    import thinner
    net = thinner.load("data/prune")
    net.predict("photo.jpg").label

The names below are all that is public. They are imported when they are asked for (PEP 562), so that neither
`import thinner` nor a stage, which imports its modules one by one, pays for the others.
"""

import sys

if sys.argv[:1] == ["-m"]:  # a program of ours, `python -m thinner.measure.verify`: it ends at once (tasks/__init__.py)
    import atexit
    import gc

    atexit.register(gc.freeze)

__all__ = ["Network", "Prediction", "UnreadablePictureError", "UserError", "load"]
# what people's own code takes from here (docs/extend.md), and the room where each lies: `from thinner import losses`
_MODULES = {
    "checkpoint": "networks",
    "criteria": "compress",
    "export": "networks",
    "losses": "learn",
    "masks": "compress",
    "models": "networks",
    "signals": "learn",
    "training": "learn",
    "views": "data",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        from importlib import import_module

        return import_module(f"thinner.{_MODULES[name]}.{name}")
    if name not in __all__:  # a module, which Python imports itself; or a slip of the pen
        raise AttributeError(f"module 'thinner' has no attribute '{name}'. It has {', '.join(__all__)}")
    from thinner import network

    return getattr(network, name)
