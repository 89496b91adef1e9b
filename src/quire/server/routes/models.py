"""`/v1/models`."""

from __future__ import annotations

from quire.core.sampling_params import SamplingParams
from quire.server.engine_client import ServedModel
from quire.server.http.answers import Answer, JsonAnswer
from quire.server.protocol.others import ModelCard, ModelList
from quire.server.routes.endpoint import Call, Endpoint


async def list_models(call: Call, _body: None) -> Answer:
    """Return all names under which the model is served."""
    names = (call.served.name, *call.served.aliases)
    return JsonAnswer(ModelList([_card(call.served, name) for name in names]))


async def show_model(call: Call, name: str) -> Answer:
    """Return one name; 404 if it is another."""
    return JsonAnswer(_card(call.served, call.model(name)))


def model_defaults(served: ServedModel) -> dict[str, float]:
    """Return the sampling parameters that the model asks for, as far as they are not everybody's."""
    plain = SamplingParams()
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
    return {name: value for name in names if (value := getattr(served.default_params, name)) != getattr(plain, name)}


def _card(served: ServedModel, name: str) -> ModelCard:
    return ModelCard(name, served.created_s, served.max_model_len, served.name, model_defaults(served))


LIST = Endpoint("GET", "/v1/models", list_models, "List what is served.", answer=ModelList)
SHOW = Endpoint("GET", "/v1/models/{model:path}", show_model, "Show one model.", answer=ModelCard)
