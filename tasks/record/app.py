"""MLflow's server without its assistant, for `make ui`: `mlflow server --app-name thinner` (pyproject.toml names it).

The assistant answers whoever asks from this machine, and where it is told which model to ask, runs that model's
commands as the owner. Other users of the machine could tell it so, and pages of a server on another port.
"""

from mlflow.server.fastapi_app import app as mlflow_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ASSISTANT = "/mlflow/assistant"


class WithoutAssistant:
    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = PlainTextResponse("Not Found", 404) if ASSISTANT in scope.get("path", "") else self.inner
        await answer(scope, receive, send)


app = WithoutAssistant(mlflow_app)
