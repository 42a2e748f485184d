"""Failed requests of users, sent again: does each now end as it should?

    python -m benchmarks.cases ../shared/cases --url http://127.0.0.1:8000 [--only f05]

The folder holds one JSON file a case: `endpoint`, `body`, and in words what was seen and what is
right. What is right stands here once more, as code (EXPECTED), by the name of the file. The server
must serve the models that the bodies name. Exit code 1 if any case ends otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs

REQUEST_S = 120.0  # of one request, after which it counts as unanswered
START_S = 30.0  # of a server that is to refuse to start
PROMPT_S = 7.0  # of a small schema behind two slow ones: the compile deadline and a moment
EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A file of the folder."""

    name: str
    fault: str
    endpoint: str
    body: dict[str, Any]
    text: str = ""  # of a configuration file


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said to one request."""

    status: int
    body: dict[str, Any]
    seconds: float = 0.0

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object; {} if there is none."""
        found = self.body.get("error")
        return found if isinstance(found, dict) else {}

    @property
    def text(self) -> str:
        """The text of the first choice."""
        choice = self.body["choices"][0]
        found = choice["message"]["content"] if "message" in choice else choice["text"]
        return str(found)

    @property
    def finish_reason(self) -> str:
        """Why the first choice ended."""
        return str(self.body["choices"][0]["finish_reason"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case; `why` is empty if it ended as it should."""

    case: Case
    why: str
    seconds: float


Expectation = Callable[[Case, Reply], str]  # returns what is wrong, or ""


def answers(case: Case, reply: Reply) -> str:
    """Expect an answer, whatever it says."""
    if reply.status == httpx.codes.OK:
        return ""
    return f"status {reply.status}: {reply.error.get('message', reply.body)}"


def fits(case: Case, reply: Reply, *, before: str = "") -> str:
    """Expect a whole answer that the body's schema accepts, formats included.

    before: what stands before the answer and is part of the JSON.
    """
    if wrong := answers(case, reply):
        return wrong
    if reply.finish_reason != "stop":
        return f"finish_reason is {reply.finish_reason}"
    try:
        value = json.loads(before + reply.text)
    except ValueError as error:
        return f"the answer is not JSON: {error}"
    schema = case.body["response_format"]["json_schema"]["schema"]
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    wrongs = [error.message for error in validator.iter_errors(value)]
    return f"the answer breaks the schema: {wrongs[0]}" if wrongs else ""


def is_value(want: Any) -> Expectation:
    """Expect an answer that fits the schema and is this value."""

    def check(case: Case, reply: Reply) -> str:
        if wrong := fits(case, reply):
            return wrong
        return "" if json.loads(reply.text) == want else f"the answer is {reply.text}"

    return check


def continues(before: str) -> Expectation:
    """Expect that what was begun, and the answer, fit the schema together."""
    return lambda case, reply: fits(case, reply, before=before)


def refused(*, param: str | None = None, starts: str = "", says: Sequence[str] = ()) -> Expectation:
    """Expect a 400, by its param, how its message begins, and patterns that stand in it."""

    def check(case: Case, reply: Reply) -> str:
        message = str(reply.error.get("message", ""))
        if reply.status != httpx.codes.BAD_REQUEST:
            return f"status {reply.status} in place of 400: {message or reply.body}"
        if param is not None and reply.error.get("param") != param:
            return f"param is {reply.error.get('param')!r}: {message}"
        if not message.startswith(starts):
            return f"the message does not begin with {starts!r}: {message}"
        missing = [pattern for pattern in says if not re.search(pattern, message)]
        return f"the message says nothing of {missing}: {message}" if missing else ""

    return check


def either(*ways: Expectation) -> Expectation:
    """Expect one of several ends."""

    def check(case: Case, reply: Reply) -> str:
        wrongs = [way(case, reply) for way in ways]
        return "" if "" in wrongs else " / ".join(wrongs)

    return check


UNSATISFIABLE = refused(says=("no answer can satisfy",))
EXPECTED: dict[str, Expectation] = {
    "f01a_httpurl": fits,
    "f01b_email_max254": fits,
    "f01c_nonblank_50": fits,
    "f01d_zod_formats": fits,
    "f01e_k8s_name_253": fits,
    "f01f_upper_120_optional": fits,
    "f02_enum_5000": fits,
    "f02b_oneof_200_branches": fits,
    "f03_completion_special": answers,
    "f04_enum_const_bool": UNSATISFIABLE,
    "f04b_const_enum_number": UNSATISFIABLE,
    "f05_outer_strict": refused(param="response_format.strict"),
    "f05b_assistant_cache_control": refused(param="messages[1].content[0].cache_control"),
    "f05c_role_key": either(refused(param="messages[0].id"), refused(param="messages[0].user")),
    "f06_format_const": is_value({"v": "2024-01-01"}),
    "f07_unknown_format_with_pattern": fits,
    "f08_lookahead_decimal": either(fits, refused(says=("look-ahead", "write|use|in place"))),
    "f09_500_optional": fits,
    "f09b_1000_optional": either(fits, refused(says=("1000",))),
    "f10_oneof_300_consts": fits,
    "f11_structured_outputs_name": refused(
        param="structured_outputs.regex", starts="structured_outputs.regex"
    ),
    "f12_allowed_ids_schema": refused(),
    "f13_reasoning_none": answers,
    "f14b_unsat_pointer": refused(says=("/properties/v",)),
    "f15_config_dup_key": refused(says=("api_key", "twice|duplicate|again")),
    "f16_unevaluated": fits,
    "f17_prefill_schema": continues('{"a":'),
    "f18_uint64_format": fits,
    "f19_two_slow_schemas": fits,
}


async def send(http: httpx.AsyncClient, endpoint: str, body: dict[str, Any]) -> Reply:
    """Send one request; one that is not answered has the status 0."""
    began = time.monotonic()
    try:
        response = await http.post(endpoint, json=body)
    except httpx.HTTPError as error:
        return Reply(0, {"error": {"message": repr(error)}}, time.monotonic() - began)
    try:
        found = response.json()
    except ValueError:
        found = {"text": response.text}
    return Reply(response.status_code, found, time.monotonic() - began)


async def replay(http: httpx.AsyncClient, case: Case) -> Outcome:
    """Send a case as its kind wants it, and judge what comes of it."""
    began = time.monotonic()
    if (expected := EXPECTED.get(case.name)) is None:
        return Outcome(case, "nothing is known of what is right", 0.0)
    why = await SPECIAL.get(case.name, _once)(http, case, expected)
    return Outcome(case, why, time.monotonic() - began)


async def _once(http: httpx.AsyncClient, case: Case, expected: Expectation) -> str:
    return expected(case, await send(http, case.endpoint, case.body))


async def _as_token_ids(http: httpx.AsyncClient, case: Case, expected: Expectation) -> str:
    """Expect /tokenize's count, and the answer of the same prompt as token ids."""
    asked = {"model": case.body["model"], "prompt": case.body["prompt"]}
    tokens = (await send(http, "/tokenize", asked)).body.get("tokens", [])
    have = await send(http, case.endpoint, case.body)
    want = await send(http, case.endpoint, {**case.body, "prompt": tokens})
    if wrong := expected(case, have) or expected(case, want):
        return wrong
    if (count := have.body["usage"]["prompt_tokens"]) != len(tokens):
        return f"prompt_tokens is {count}, /tokenize counts {len(tokens)}"
    return "" if have.text == want.text else f"{have.text!r} as text, {want.text!r} as token ids"


async def _behind_hostile(http: httpx.AsyncClient, case: Case, expected: Expectation) -> str:
    """Expect a small request behind slow ones to be answered soon."""
    slow = [
        asyncio.create_task(send(http, case.endpoint, body))
        for body in case.body["hostile_in_parallel"]
    ]
    await asyncio.sleep(0.5)
    body = case.body["then_after_0.5_s"]
    reply = await send(http, case.endpoint, body)
    await asyncio.gather(*slow)
    small = Case(case.name, case.fault, case.endpoint, body)
    late = f"it took {reply.seconds:.1f} s" if reply.seconds > PROMPT_S else ""
    return expected(small, reply) or late


async def _as_config(http: httpx.AsyncClient, case: Case, expected: Expectation) -> str:
    """Expect `plait serve` to refuse a configuration file, in a line and without a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plait.yaml"
        path.write_text(case.text)
        plait = Path(sys.executable).with_name("plait")
        return judge_start(
            case, expected, *await _run(plait, "serve", "--port", "0", "--config", path)
        )


def judge_start(case: Case, expected: Expectation, code: int | None, said: str) -> str:
    """Judge how a start has ended; a usage error is the command line's 400."""
    if code is None:
        return "it starts"
    if "Traceback" in said:
        return "it ends with a traceback"
    status = httpx.codes.BAD_REQUEST if code == EXIT_USAGE else code
    return expected(case, Reply(status, {"error": {"message": said.strip()}}))


async def _run(*command: str | Path) -> tuple[int | None, str]:
    """Return a command's exit code, None if it goes on, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(START_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.terminate()
        await process.communicate()
        return None, ""
    return process.returncode, output.decode(errors="replace")


Replay = Callable[[httpx.AsyncClient, Case, Expectation], Awaitable[str]]
SPECIAL: dict[str, Replay] = {
    "f03_completion_special": _as_token_ids,
    "f15_config_dup_key": _as_config,
    "f19_two_slow_schemas": _behind_hostile,
}


def read_cases(folder: Path, only: str = "") -> list[Case]:
    """Return the cases of a folder whose names begin with `only`."""
    found = []
    for path in sorted(folder.glob(f"{only}*.json")):
        raw = json.loads(path.read_text())
        fault, endpoint, body = raw["fault"], raw["endpoint"], raw["body"]
        found.append(Case(path.stem, fault, endpoint, body, raw.get("text", "")))
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each case, and how many ended as they should."""
    width = max((len(outcome.case.name) for outcome in outcomes), default=0)
    lines = [
        f"{outcome.case.name:{width}}  {outcome.case.fault:4} {'FAIL' if outcome.why else 'ok':4} "
        f"{outcome.seconds:6.1f} s  {' '.join(outcome.why.split())[:300]}".rstrip()
        for outcome in outcomes
    ]
    right = sum(not outcome.why for outcome in outcomes)
    return "\n".join([*lines, f"{right} of {len(outcomes)} end as they should"])


@dataclass(slots=True)
class Options:
    """The command line."""

    folder: Path
    url: str = "http://127.0.0.1:8000"
    only: str = ""
    api_key: str = field(default="none", repr=False)


async def run(options: Options) -> int:
    """Replay the folder, one case after the other; return the exit code."""
    headers = {"authorization": f"Bearer {options.api_key}"}
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=REQUEST_S) as http:
        outcomes = [await replay(http, case) for case in read_cases(options.folder, options.only)]
    print(table(outcomes))
    return int(not outcomes or any(outcome.why for outcome in outcomes))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--api-key", default="none")
    given = parser.parse_args()
    sys.exit(asyncio.run(run(Options(given.folder, given.url, given.only, given.api_key))))


if __name__ == "__main__":
    main()
