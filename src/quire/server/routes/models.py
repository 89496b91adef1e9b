"""`/v1/models`."""

from __future__ import annotations

from quire.server.http.answers import Answer, JsonAnswer
from quire.server.protocol.others import ModelCard, ModelList
from quire.server.routes.endpoint import Call, Endpoint


async def list_models(call: Call, _body: None) -> Answer:
    """Return all names under which the model is served."""
    served = call.served
    names = (served.name, *served.aliases)
    return JsonAnswer(ModelList([ModelCard(name, served.created_s, served.max_model_len, served.name) for name in names]))


async def show_model(call: Call, name: str) -> Answer:
    """Return one name; 404 if it is another."""
    served = call.served
    return JsonAnswer(ModelCard(call.model(name), served.created_s, served.max_model_len, served.name))


LIST = Endpoint("GET", "/v1/models", list_models, "List what is served.", answer=ModelList)
SHOW = Endpoint("GET", "/v1/models/{model:path}", show_model, "Show one model.", answer=ModelCard)
