"""A live page of a router, and its numbers over HTTP; needs the extra ``helixnb[web]``."""

try:
    from helixnb.web._app import create_app
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("starlette", "prometheus_client"):
        raise
    raise ModuleNotFoundError(
        f"helixnb.web needs {error.name}: pip install 'helixnb[web]'", name=error.name
    ) from None

__all__ = ["create_app"]
