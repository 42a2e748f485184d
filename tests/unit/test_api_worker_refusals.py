"""What only a worker can know to be impossible is still the client's 400, and nobody else's."""

from __future__ import annotations

from typing import Any

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.decoding import DecodingSpec
from plait.decoders.contract.registry import MethodError
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.errors import BadRequest
from plait.server.pool.in_flight import to_server_error
from plait.server.wire.messages import GenerateRequest


class PickyDecoder(AutoregressiveDecoder):
    def start(self, request: DecodeRequest) -> Any:
        if request.methods is not None:
            raise MethodError("learn2pd needs a filter.", "decoding.unmasker")
        return super().start(request)


def ask(name: str, **named: Any) -> GenerateRequest:
    decoding = resolve_decoding(named) if named else DecodingSpec()
    return GenerateRequest(name, [1, 2], SamplingParams(), 3, n=2, decoding=decoding)


def test_a_method_that_lacks_something_is_a_bad_request() -> None:
    decoder = PickyDecoder(10)
    capacity = EngineCapacity(100, 10, "fp")
    admission = Admission(capacity, lambda request: decoder, lambda compiled: None)  # type: ignore[arg-type, return-value]
    admission.add(ask("bad", unmasker="learn2pd"))
    admission.add(ask("good"))
    arrived, failed = admission.poll(wait=False)
    assert [(group.request.request_id, len(group.members)) for group in arrived] == [("good", 2)]
    error = to_server_error(failed[0])
    assert isinstance(error, BadRequest)
    assert (error.message, error.param) == ("learn2pd needs a filter.", "decoding.unmasker")
    assert not admission.is_loading
