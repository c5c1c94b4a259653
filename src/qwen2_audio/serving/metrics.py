"""What Prometheus is told: counts and times of all requests, named as vLLM names them, with our prefix."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.serving.answering import as_generator
from qwen2_audio.serving.backend import Backend, BarePrompt, Delta, Job, ModelCard, OverloadedError

PREFIX = "qwen2_audio:"
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
_WHOLE = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 240, 600)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(backend))
        labels = ("model_name",)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", labels)
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers.", labels)
        self.success = self._counter("request_success", "Answers that came to their end.", (*labels, "finished_reason"))
        self.rejections = self._counter("admission_rejections", "Requests refused because too much was waiting.", ())
        self.first_token = self._histogram("time_to_first_token_seconds", "From a job to its first token.", _FIRST)
        self.between = self._histogram("inter_token_latency_seconds", "From one token to the next.", _BETWEEN)
        self.whole = self._histogram("e2e_request_latency_seconds", "From a job to the end of its answer.", _WHOLE)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, ("model_name",), buckets=buckets, registry=self.registry)

    @property
    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What the backend says of itself, asked when it is wanted."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        gauges = self._backend.gauges()
        running, waiting = gauges.get("requests_running", 0), gauges.get("requests_waiting", 0)
        yield GaugeMetricFamily(PREFIX + "num_requests_running", "Answers being written.", running)
        yield GaugeMetricFamily(PREFIX + "num_requests_waiting", "Answers that wait for their turn.", waiting)
        cache = gauges.get("cache_usage", 0)
        yield GaugeMetricFamily(PREFIX + "kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1.", cache)
        restarts = gauges.get("engine_restarts", 0)
        yield CounterMetricFamily(PREFIX + "engine_restarts", "How often the engine was started anew.", restarts)
        if "engines_usable" in gauges:
            usable = gauges["engines_usable"]
            yield GaugeMetricFamily(PREFIX + "engines_usable", "Engines elsewhere that can be asked now.", usable)


class MeasuredBackend:
    """A backend whose jobs are counted and timed. Everything in the server asks this one."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """As the backend says."""
        return self._backend.models

    @property
    def ready(self) -> bool:
        """As the backend says."""
        return self._backend.ready

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """The backend's answer, timed."""
        metrics, model = self._metrics, job.model
        began = last = time.perf_counter()
        first, prompt = True, 0
        try:
            async with aclosing(as_generator(self._backend.generate(job))) as stream:
                async for delta in stream:
                    now = time.perf_counter()
                    if not prompt:  # some engines say it at the end only, and tokens too
                        prompt = delta.prompt_tokens
                        metrics.prompt_tokens.labels(model).inc(prompt)
                    if first:
                        metrics.first_token.labels(model).observe(now - began)
                    elif delta.tokens:
                        metrics.between.labels(model).observe((now - last) / delta.tokens)
                    if first or delta.tokens:
                        first, last = False, now
                    metrics.generation_tokens.labels(model).inc(delta.tokens)
                    if delta.finish_reason:
                        metrics.success.labels(model, delta.finish_reason).inc()
                        metrics.whole.labels(model).observe(now - began)
                    yield delta
        except OverloadedError:
            metrics.rejections.inc()
            raise

    async def tokenize(self, prompt: Conversation | BarePrompt, model: str) -> tuple[list[int], int]:
        """As the backend says."""
        return await self._backend.tokenize(prompt, model)

    def gauges(self) -> dict[str, float]:
        """As the backend says."""
        return self._backend.gauges()

    async def start(self) -> None:
        """Start the backend."""
        await self._backend.start()

    async def close(self) -> None:
        """Close the backend."""
        await self._backend.close()
