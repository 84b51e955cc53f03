"""Metrics of Django's pages: those of django-prometheus that tell an operator something.

django-prometheus (2.5) makes about 20 time series for every method and view that it meets. Anybody can request every
page with every method, so metrics with these two labels are not exported. Its metrics of models and migrations, which
count nothing here, are not either.
"""

from typing import Any, Final

from django_prometheus import migrations, models
from django_prometheus.middleware import Metrics, PrometheusAfterMiddleware, PrometheusBeforeMiddleware
from prometheus_client import REGISTRY

EXPORTED: Final = frozenset(
    {
        "django_http_requests_before_middlewares_total",
        "django_http_requests_latency_including_middlewares_seconds",
        "django_http_requests_total_by_method",
        "django_http_responses_total_by_status",
        "django_http_exceptions_total_by_type",
    }
)
"""Methods are one of `requests.KNOWN_METHODS`: others do not reach Django."""


UNUSED: Final = (
    models.model_inserts,
    models.model_updates,
    models.model_deletes,
    migrations.applied_migrations,
    migrations.unapplied_migrations,
)
"""What django-prometheus registers when it is imported."""

for _metric in UNUSED:
    REGISTRY.unregister(_metric)


class PageMetrics(Metrics):  # type: ignore[misc]  # django-prometheus has no types
    """The metrics of django-prometheus, of which only `EXPORTED` are registered."""

    def register_metric(
        self, metric_cls: Any, name: str, documentation: str, labelnames: Any = (), **kwargs: Any
    ) -> Any:
        """Make one metric."""
        registry = REGISTRY if name in EXPORTED else None
        return metric_cls(name, documentation, labelnames=labelnames, registry=registry, **kwargs)


class CountBeforeMiddleware(PrometheusBeforeMiddleware):  # type: ignore[misc]
    """Middleware: measures pages with all other middleware. It comes first."""

    metrics_cls = PageMetrics


class CountAfterMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """Middleware: measures pages without the other middleware. It comes last."""

    metrics_cls = PageMetrics
