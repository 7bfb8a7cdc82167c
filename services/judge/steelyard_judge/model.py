"""The gateway to models: litellm, imported here alone and when first needed, with one retry layer: the ledger."""

import asyncio
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from steelyard.errors import Later
from steelyard.metrics.judging import Case, Question, Reply
from steelyard.providers import PROVIDERS, RULES, access, at_own_address, default_model, provider_of, why_no_name
from steelyard.settings import Settings
from steelyard.traces import storable
from steelyard_judge import replies
from steelyard_judge.gates import Exhausted, Gate, Gates, Shut, jitter
from steelyard_judge.refusals import MOST_SAID, exhausted, of_the_format, outcome_of, retry_after
from steelyard_judge.replies import without
from steelyard_judge.usage import TooLarge, Unanswered, Usage, count

log = logging.getLogger(__name__)
# From strict to lax; what a model refuses is remembered, and not tried again with it.
LADDER = ("schema", "json", "text")
_SECRET = re.compile(r"(sk|key|token|bearer|api)[-_ :=\"'a-z]{0,40}[A-Za-z0-9_\-]{12,}", re.IGNORECASE)


@dataclass
class Gateway:
    """`environ` has the vendors' keys and addresses; what litellm would look up by itself is told to it."""

    settings: Settings
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    gates: Gates = field(default_factory=Gates)
    _rung: dict[str, int] = field(default_factory=dict)
    _litellm: ModuleType | None = None
    _session: Any = None

    async def start(self) -> None:
        """Where a model will be asked, its library is loaded before the first question waits for it."""
        if default_model(self.settings.judge_model, self.settings.judge_base_url, self.environ) != RULES:
            await self._library()

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def unwell(self) -> str | None:
        return None

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        """One question, one validated answer; a reply that cannot be read is asked for once more."""
        said, problem = "", ""
        for _ in range(2):
            said = await self._complete(question, model, usage)
            try:
                return replies.read(said, question, self._kept_from(question.case))
            except ValueError as e:
                problem = str(e)
        why = f"the judge's reply cannot be used: {problem}"
        raise Unanswered(why, self._judge(model, usage), without(storable(said), self._kept_from(question.case)))

    def probe(self, model: str) -> None:
        """The next call asks a provider whose quota was exhausted, whether or not its time has passed."""
        self.gates.probe(self._account(model))

    async def embed(self, model: str, texts: Sequence[str], usage: Usage) -> tuple[Sequence[float], ...]:
        try:
            answer = await self._call("aembedding", model, usage, input=list(texts))
        except Exhausted as e:
            # No run is held for want of vectors, so it is the pair that waits for the quota.
            raise Later(str(e), after=self.gates.quota_seconds, counts=False) from None
        rows = sorted(answer.data, key=lambda d: d["index"])
        if len(rows) != len(texts):
            raise ValueError("not one vector for each text")
        return tuple(tuple(float(x) for x in row["embedding"]) for row in rows)

    def _judge(self, model: str, usage: Usage) -> dict[str, Any]:
        return {"kind": "llm", "model": model, **usage.as_json()}

    async def _complete(self, question: Question, model: str, usage: Usage) -> str:
        s = self.settings
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.prompt}]
        more: dict[str, Any] = {"messages": messages, "max_tokens": s.judge_max_tokens}
        if s.judge_temperature is not None:
            more["temperature"] = s.judge_temperature
        answer = await self._formatted(question, model, usage, more)
        said, why = replies.said(answer)
        if why:
            said = without(storable(said), self._kept_from(question.case))
            raise Unanswered(why, self._judge(model, usage), said)
        return said

    async def _formatted(self, question: Question, model: str, usage: Usage, more: Mapping[str, Any]) -> Any:
        """Down the ladder while the request is refused; a lower rung is remembered when it was taken."""
        first = self._rung.get(model, 0)
        for rung in range(first, len(LADDER)):
            try:
                answer = await self._call("acompletion", model, usage, **more, **_format(LADDER[rung], question.reply))
            except _FormatRefused:
                continue
            if rung > self._rung.get(model, 0):
                self._rung[model] = rung
                log.info("%s refuses response_format %s; from now on: %s", model, LADDER[first], LADDER[rung])
            return answer
        raise AssertionError("without a response_format nothing is refused because of one")

    async def _call(self, verb: str, model: str, usage: Usage, **more: Any) -> Any:
        if why := why_no_name(model):  # checked when the run was made, but whoever builds an address relies on nobody
            raise Unanswered(why, self._judge(model, usage))
        account, litellm = self._account(model), await self._library()
        async with self.gates.passed(account, model) as gate:
            answer = await self._asked(litellm, verb, model, gate, usage, more)
        if verb == "acompletion":
            self.gates.answered(account, model)  # vectors may be had where no answers are
        return answer

    async def _asked(
        self, litellm: ModuleType, verb: str, model: str, gate: Gate, usage: Usage, more: Mapping[str, Any]
    ) -> Any:
        began, one, outcome = time.monotonic(), Usage(), "cancelled"
        usage.calls += 1
        try:
            async with asyncio.timeout(self.settings.judge_call_seconds):
                answer = await getattr(litellm, verb)(**self._route(model), **self._manners(verb), **more)
            outcome = "ok"
            count(litellm, answer, model, one)
        except TimeoutError as e:
            outcome = "timeout"
            raise Later(f"{model} did not answer within {self.settings.judge_call_seconds:.0f} s") from e
        except Exception as e:
            outcome = outcome_of(e)
            meaning = self._meaning(e, model, gate, usage, bool(more.get("response_format")))
            if outcome == "rate_limited" and not isinstance(meaning, Exhausted):
                gate.fewer(began)
            raise meaning from None
        finally:
            one.seconds = time.monotonic() - began
            usage.note(outcome, one)
        gate.more()
        return answer

    def _manners(self, verb: str) -> dict[str, Any]:
        """By default one 429 became three requests and fourteen seconds of a blocked slot."""
        seconds = self.settings.judge_call_seconds
        manners: dict[str, Any] = {"num_retries": 0, "max_retries": 0, "timeout": seconds, "drop_params": True}
        return manners | ({"shared_session": self._session} if verb == "acompletion" else {})

    def _route(self, model: str) -> dict[str, Any]:
        """Models of our own address speak OpenAI's wire, whatever they are called."""
        s = self.settings
        if at_own_address(model, s.judge_base_url, self.environ):
            key = s.judge_api_key.get_secret_value() if s.judge_api_key else "none"
            name = model if model.startswith("openai/") else f"openai/{model}"
            return {"model": name, "api_base": s.judge_base_url, "api_key": key}
        provider = provider_of(model)
        if provider is None:
            return {"model": model}
        name = model if model.startswith(provider.prefixes) else f"{provider.key}/{model}"
        return {"model": name, **access(provider, self.environ)}

    def _account(self, model: str) -> str:
        """Limits belong to a provider's key. The name travels, so that no short key may be guessed from it."""
        name, *rest = self._route(model).values()
        secret = self.settings.deployment_secret.get_secret_value().encode()
        return f"{name.split('/')[0]} {hmac.new(secret, repr(rest).encode(), hashlib.sha256).hexdigest()[:12]}"

    def _meaning(self, e: Exception, model: str, gate: Gate, usage: Usage, formatted: bool) -> Exception:
        """A provider's error as one of few words. Its text may quote our key or the judged text, so little of it stays."""
        status = getattr(e, "status_code", None)
        kind, said = type(e).__name__, self._without_keys(str(e))[:300]
        judge = self._judge(model, usage)
        quota = exhausted(e, status)
        if status == 429 and not quota:
            wait = retry_after(e)
            gate.close(f"{model} is rate limited", wait)
            return Shut(gate.why, after=wait + jitter(wait), counts=False)
        if quota:
            gate.exhaust(f"the quota of {model} is exhausted", self.gates.quota_seconds)
            return Exhausted(gate.why_exhausted)
        if kind == "ContextWindowExceededError":
            return TooLarge("the trace is too large for the model", judge)
        if kind in ("Timeout", "APIConnectionError") or status is None or status == 408 or status >= 500:
            return Later(f"{model} is not reachable ({kind})")
        if formatted and of_the_format(e, status):
            return _FormatRefused()
        if status in (401, 403):
            return Unanswered(f"{model} refuses the key (status {status})", judge)
        return Unanswered(f"{model} refuses the request (status {status}: {said})", judge)

    def _without_keys(self, text: str) -> str:
        """Our keys by what they are, others by what they look like."""
        known = str(without(text, [k for k in self._keys() if len(k) >= 4]))
        return _SECRET.sub("…", known[:MOST_SAID])

    def _keys(self) -> list[str]:
        ours = [self.environ.get(v, "") for p in PROVIDERS for v in p.variables]
        ours += [self.settings.judge_api_key.get_secret_value()] if self.settings.judge_api_key else []
        return sorted(filter(None, ours), key=len, reverse=True)

    def _kept_from(self, case: Case) -> list[str]:
        """What no reader of a reply may learn. A record may make its judge tell the marks, for the next record to use;
        a server may quote its own key. Short keys are words ("EMPTY", "ollama"), and a reason may use them."""
        return [k for k in self._keys() if len(k) >= 12] + [case.nonce, case.boundary]

    async def _library(self) -> ModuleType:
        if self._litellm is None:
            litellm: Any = await asyncio.to_thread(imported)
            if self._litellm is None:
                import aiohttp

                litellm.suppress_debug_info = True
                litellm.telemetry = False
                litellm.DEFAULT_MAX_RETRIES = 0  # its embeddings take our max_retries=0 for "none was given"
                # At DEBUG they write down whole prompts, with people's words and the marks around them.
                for name in ("openai", "httpx", "httpcore", "LiteLLM"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                # httpx collapses above a hundred connections; aiohttp does not.
                self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
                self._litellm = litellm
        return self._litellm


class _FormatRefused(Exception):
    pass


def imported() -> ModuleType:
    """Neither when it is imported nor with the first call to Anthropic does it fetch anything."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
    os.environ.setdefault("LITELLM_LOG", "ERROR")
    import litellm  # two seconds and 157 MB: only the judge pays, and only when a model is asked

    module: ModuleType = litellm
    return module


def _format(rung: str, reply: type[Reply]) -> dict[str, Any]:
    if rung == "schema":
        schema = {"name": reply.__name__, "schema": reply.model_json_schema(), "strict": False}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if rung == "json" else {}
